"""Bad inputs through the whole recipe `web`: each costs itself, and says so; nothing else is lost."""

from __future__ import annotations

import functools
import gzip
import json
import os
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.data.make import extracted, ingested, record, warc_gz
from tests.faces.test_bad_inputs import upslope
from upslope.config import Input
from upslope.data import extracting
from upslope.data.artifacts import Corpus, Pages
from upslope.data.extracting import Html
from upslope.machine import run as machine
from upslope.machine.context import Context
from upslope.machine.store import Store
from upslope.stages.extract import Extract

pytestmark = pytest.mark.xdist_group("e2e-data")

DEEP = 1_000_000
SUBJECTS = ("heron", "miller", "ferry", "orchard", "clockmaker", "glacier", "printer", "beehive", "violin", "lighthouse", "weaver", "canal")


def prose(number: int) -> str:
    """A page of honest sentences about one subject, unlike those of other numbers."""
    a, b = SUBJECTS[number % 12], SUBJECTS[(number * 5 + number // 12 + 3) % 12]
    return (
        f"The {a} of our valley is known far beyond the river, and there are good reasons for that. In the year {1700 + 7 * number} "
        f"somebody wrote down how it all began, but the {b} kept the letters and would not show them to anyone.\n\n"
        f"Most visitors come in spring because the {a} is at its best when the snow has gone. They have to walk for {number + 2} hours, "
        f"which nobody regrets, and at the end of the path the {b} waits with bread, cheese and a story that is different every time."
    )


def page(text: str) -> bytes:
    return ("<html lang=en><body><article>" + "".join(f"<p>{p}</p>" for p in text.split("\n\n")) + "</article></body></html>").encode()


def dated(body: bytes, date: str) -> bytes:
    """A record with another date."""
    return body.replace(b"WARC-Date: 2024-06-01T00:00:00Z", b"WARC-Date: " + date.encode())


DATES = ("99999-99-99T00:00:00Z", "0000-00-00", "yesterday", "-1")


@dataclass(frozen=True)
class Ran:
    """A run of `web` over a folder of good and bad inputs. said: what the command printed."""

    folder: Path
    said: str

    def corpus(self, stage: str = "corpus") -> Corpus:
        return Corpus.load(self.data(stage))

    def data(self, stage: str) -> Path:
        found = machine.record(Store(self.folder / "store")).stage(stage)
        assert found is not None and found.manifest is not None
        return found.data

    def fates(self, url: str) -> list[Mapping[str, Any]]:
        code, text = upslope("why", url, "--store", str(self.folder / "store"), "--json")
        assert code == 0, text
        found: list[Mapping[str, Any]] = json.loads(text)
        return found


def command(folder: Path, *more: str) -> list[str]:
    return ["run", str(folder / "mine.toml"), "--inline", "--workers", "1", "--store", str(folder / "store"), *more]


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    """24 good pages beside everything that is wrong."""
    folder = tmp_path_factory.mktemp("bad")
    inputs = folder / "in"
    (inputs / "empty").mkdir(parents=True)
    records = [record(f"https://good.example/{i}", page(prose(i))) for i in range(24)]
    records += [record("https://same.example/", page(prose(30 + i))) for i in range(2)]
    records += [dated(record(f"https://dates.example/{i}", page(prose(40 + i))), date) for i, date in enumerate(DATES)]
    records += [record("https://nul.example/", page(prose(50)).replace(b"letters", b"let\0ters").replace(b"<article>", b"<arti\0cle>"))]
    records += [record("https://deep.example/", b"<div>" * DEEP + prose(60).encode())]
    warc_gz(inputs / "site.warc.gz", records)
    bomb = record("https://bomb.example/", b"<p>" + b" " * (80 << 20))
    after = record("https://after.example/", page(prose(70)))
    (inputs / "zbomb.warc.gz").write_bytes(gzip.compress(bomb, 9, mtime=0) + gzip.compress(after, mtime=0))
    (inputs / "zero.html").write_bytes(b"")
    (inputs / "gone.jsonl").symlink_to(inputs / "nowhere")
    os.mkfifo(inputs / "pipe.html")
    (folder / "mine.toml").write_text(
        f'schema = 1\nextends = "web"\nname = "bad"\n[set]\n"pages.sources" = ["{inputs}"]\n"pages.rows" = 8\n'
        '"tokenizer.vocab_size" = 300\n'
    )
    began = time.monotonic()
    code, said = upslope(*command(folder))
    assert code == 0, said
    assert "Traceback" not in said and time.monotonic() - began < 120
    return Ran(folder, said)


def test_the_good_pages_live(ran: Ran) -> None:
    kept = {u for b in ran.corpus().batches(("url",)) for u in b["url"].to_pylist()}
    assert {f"https://good.example/{i}" for i in range(24)} <= kept
    assert "https://after.example/" in kept, "what follows a bomb"


def test_what_could_not_be_read_is_in_the_ledger(ran: Ran) -> None:
    pages = Pages.load(ran.data("pages"))
    why = {r["record"].rpartition(" ")[2]: r["why"] for r in pages.rejects().to_pylist()}
    assert why["https://bomb.example/"].startswith("decompression bomb") and why["zero.html"] == "empty file"
    assert why["gone.jsonl"] == why["pipe.html"] == "not a file: a pipe, a device, or a link that leads nowhere"
    assert pages.records - len(pages) == 4 and "; 4 could not be used" in ran.said


def test_pages_of_one_address_are_two_documents(ran: Ran) -> None:
    fates = ran.fates("https://same.example/")
    assert len(fates) == 2 and fates[0]["doc"] != fates[1]["doc"] and all(f["kept"] for f in fates)


def test_absurd_dates_are_no_dates_and_the_pages_stay(ran: Ran) -> None:
    rows = [r for b in ran.corpus("labels").batches(("url", "date")) for r in b.to_pylist()]
    dates = {r["url"]: r["date"] for r in rows}
    assert [dates[f"https://dates.example/{i}"] for i in range(len(DATES))] == [""] * len(DATES)
    assert dates["https://good.example/0"] == "2024-06-01T00:00:00Z"
    for i in range(len(DATES)):
        fates = ran.fates(f"https://dates.example/{i}")
        assert fates[0]["kept"] and any("bad date" in f["rejected"] for f in fates)


def test_nul_bytes_go_and_the_text_stays(ran: Ran) -> None:
    text = next(r["text"] for b in ran.corpus().batches(("url", "text")) for r in b.to_pylist() if r["url"] == "https://nul.example/")
    assert "\0" not in text and "nobody regrets" in text


def test_a_page_a_million_elements_deep_costs_at_most_itself(ran: Ran) -> None:
    rows = [r for b in ran.corpus("labels").batches(("url", "bytes", "page.lost")) for r in b.to_pylist()]
    row = next(r for r in rows if r["url"] == "https://deep.example/")
    assert row["bytes"] > 0 or row["page.lost"]
    assert not [r for r in rows if r["page.lost"] and r is not row]


def test_token_shards_hold_every_living_document(ran: Ran) -> None:
    from upslope.tokens.shards import TokenShards

    shards = TokenShards.load(ran.data("shards"))
    docs = sorted(d for s in shards.sources() for d in shards.docs(s).tolist())
    assert docs == ran.corpus().docs()[ran.corpus().kept()].tolist()


def test_half_a_sidecar_is_named_and_made_anew(ran: Ran) -> None:
    files = {p.name + p.parent.name: p for p in (ran.data("labels") / "columns").glob("gopher*/*.parquet")}
    victim = sorted(files.values())[1]
    before = victim.read_bytes()
    os.truncate(victim, len(before) // 2)
    other = ("--set", "quality.winner=doc")
    code, text = upslope(*command(ran.folder, *other))
    assert code == 2 and len([x for x in text.splitlines() if x.startswith(("error", "    "))]) <= 6, text
    place = victim.relative_to(ran.folder / "store").as_posix()
    assert place in text.replace("\n", "") and f"has {len(before) // 2} bytes, not {len(before)}" in text and "way out" in text
    code, text = upslope(*command(ran.folder, *other, "--rebuild", "labels"))
    assert code == 0, text
    assert victim.read_bytes() == before, "made anew, not taken from the map work that shared the file"


def test_a_page_that_hangs_is_given_up_and_the_others_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    records = [record(f"https://x.example/{i}", page(prose(i))) for i in range(6)]
    pages, _ = ingested(tmp_path / "p", warc_gz(tmp_path / "a.warc.gz", records))
    real = Html.page

    @functools.wraps(real)
    def slow(self: Html, body: bytes, mime: str, charset: str = "") -> tuple[dict[str, Any], dict[str, Any]]:
        while prose(3)[:30].encode() in body:
            time.sleep(60)
        return real(self, body, mime, charset)

    monkeypatch.setattr(extracting.Html, "page", slow)
    ctx = Context.scratch(tmp_path / "slow", crawl=pages)
    corpus = Extract(pages=Input(stage="crawl"), html=Html(seconds=1.5)).run(ctx)
    assert isinstance(corpus, Corpus) and ctx.facts["lost"] == 1
    lost = corpus.table(("page.lost",), every=True)["page.lost"].to_pylist()
    assert [x is not None for x in lost] == [False, False, False, True, False, False] and lost[3] == "timeout: more than 1.5 s"
    monkeypatch.undo()
    whole, _ = extracted(tmp_path / "fast", pages)
    texts = list(whole.texts())
    assert list(corpus.texts()) == [t if i != 3 else "" for i, t in enumerate(texts)] and all(texts)


CASES = {
    "empty folder": ("hollow", "package:planted.json", r"no page could be read from hollow"),
    "evaluation items that are no JSON": ("good.warc.gz", "broken.json", r"broken\.json"),
    "evaluation items of a wrong shape": ("good.warc.gz", "numbers.json", r"numbers\.json: item 0 asks nothing"),
    "no evaluation items": ("good.warc.gz", "hollow", r"hollow: no evaluation items"),
}


@pytest.mark.parametrize("case", CASES)
def test_input_that_holds_nothing_is_an_error_that_names_it(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "hollow").mkdir()
    (tmp_path / "broken.json").write_text('{"items": [{"question": "Who')
    (tmp_path / "numbers.json").write_text('[{"n": 1}, {"n": 2}]')
    warc_gz(tmp_path / "good.warc.gz", [record(f"https://x.example/{i}", page(prose(i))) for i in range(3)])
    data, benchmarks, message = CASES[case]
    (tmp_path / "mine.toml").write_text(
        f'schema = 1\nextends = "web"\n[params]\ndata = "{data}"\nbenchmarks = "{benchmarks}"\n[set]\n"quality.rules" = []\n'
        "\"labels.steps\" = [{ kind = 'gopher' }]\n"
    )
    code, text = upslope("run", "mine.toml", "--inline", "--workers", "1", "--to", "leaks")
    assert code == 2 and re.search(message, text) and "Traceback" not in text, text
    assert len([x for x in text.splitlines() if x.startswith(("error", "    "))]) <= 6
