"""Templated pages: lines and slots as defined, templates counted per host, pages of one template linked and no others."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.data.test_dedup import batch_of, deduped, pairs_of
from upslope.config import Input
from upslope.data import artifacts, curation, hashing, shards
from upslope.data.artifacts import Corpus
from upslope.data.links import Skeleton, graph
from upslope.data.links.lines import Lines, lines
from upslope.data.links.skeleton import hosts_of, template_lines
from upslope.data.protocol import Rule
from upslope.machine import rng
from upslope.machine.context import Context
from upslope.stages.annotate import Annotate

WORDS = ["river", "stone", "cloud", "engine", "garden", "market", "letter", "window", "orange", "silver"]
TRICKY = st.text(st.sampled_from("aAb 9\n\t.\u00a0é中É\r\u2003-😀"), max_size=40)


def of(text: str) -> Lines:
    return lines(*hashing.column(pa.array([text])))


def prose(seed: int, count: int = 60) -> str:
    generator = rng.rng(0, "prose", seed)
    found = [WORDS[i] + WORDS[j] for i, j in generator.integers(0, 10, (count, 2)).tolist()]
    return "\n".join(" ".join(found[i : i + 12]) for i in range(0, count, 12))


def weather(i: int) -> str:
    return (
        f"Home\nAbout us\n\nThe temperature in Town{i} today is {i % 30} degrees and the wind blows with {i % 17} knots from the west\n"
        f"last updated on {i % 28 + 1} May 2021 by Bob Number{i}\nAll rights reserved by the weather company and its partners"
    )


def sites(folder: Path, templated: int = 30, posts: int = 20) -> tuple[Corpus, list[str], list[str]]:
    """A host of templated pages, a host of real posts inside a frame, and one page of a third host."""
    texts = [weather(i) for i in range(templated)] + [f"Home\nBlog\n{prose(i)}\nAll rights reserved" for i in range(posts)] + [weather(77)]
    urls = [f"https://www.weather.example/{i}" for i in range(templated)] + [f"http://blog.example:80/{i}?x=1" for i in range(posts)]
    return Corpus.from_texts(folder, texts, "s", urls=[*urls, "https://third.example/"]), texts, [*urls, "https://third.example/"]


def column(view: Corpus, name: str) -> list[Any]:
    return [x for b in view.batches((name,), every=True) for x in b[name].to_pylist()]


# ── lines ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@settings(max_examples=100, deadline=None)
@given(st.lists(st.one_of(TRICKY, st.text(st.characters(codec="utf-8"), max_size=30)), max_size=5))
def test_lines_are_those_of_python(texts: list[str]) -> None:
    found = lines(*hashing.column(pa.array(texts, pa.string())))
    expected = [(row, s) for row, t in enumerate(texts) for s in (line.strip() for line in t.split("\n")) if s]
    assert found.row.tolist() == [row for row, _ in expected]
    assert found.size.tolist() == [len(s.encode()) for _, s in expected]
    squeezed = [re.sub(r"\s+", " ", s) for _, s in expected]
    assert len(set(zip(squeezed, found.exact.tolist()))) == len(set(squeezed)) == len(set(found.exact.tolist()))
    assert (found.slots <= found.size).all() and (found.slots >= 0).all()


def test_what_varies_is_a_slot_of_its_class() -> None:
    same = [
        ("written by Ann Lee on 3 May 2021", "written by Bo on June 17, 2020"),
        ("it costs 3 euros", "it costs 1,299.00 euros"),
        ("the city of Paris has trees", "the city of Ulan Bator has trees"),
        ("vu le 3 août 2020 à Lyon", "vu le 14 juillet 2021 à Nice"),
        ("价格 12 元", "价格 3000 元"),
    ]
    for a, b in same:
        assert of(a).typed[0] == of(b).typed[0] and of(a).exact[0] != of(b).exact[0]
    for a, b in [("it costs 3 euros", "it cost 3 euros"), ("the Paris trees", "the 12 trees"), ("价格 12", "名称 12"), ("a b", "b a")]:
        assert of(a).typed[0] != of(b).typed[0]
    found = of("seen by Ann Lee on 3 May 2021 near Rome")
    assert found.slots[0] == len("AnnLee3May2021Rome") and found.literals[0] == 4
    assert of("Ann Lee 2021").literals[0] == 0 and of("Ärger und Élan").slots[0] == len("ÄrgerÉlan".encode())


def test_hosts() -> None:
    urls = [
        "https://WWW.A.example:80/x?u=http://b/",
        "http://user:pw@b.example",
        "c/1",
        "",
        "ftp://[::1]:2/x",
        "http://",
        "https://d.example?q",
    ]
    batch = shards.rows_to_batch([{"url": u, "source": "src"} for u in urls] + [{"url": None, "source": None}], shards.TEXT)
    assert hosts_of(batch) == ["a.example", "b.example", "src", "src", "[::1]", "src", "d.example", ""]


# ── templates ─────────────────────────────────────────────────────────────────────────────────────────────────────


def template_lines_in_python(texts: list[str], urls: list[str], share: float, pages: int) -> dict[str, set[str]]:
    hosts = [u.split("/")[2].split(":")[0].removeprefix("www.") for u in urls]
    out: dict[str, set[str]] = {}
    for host in set(hosts):
        mine = {t for t, h in zip(texts, hosts) if h == host}
        sets = [{s for s in map(str.strip, t.split("\n")) if s} for t in mine]
        found = {s for each in sets for s in each if sum(s in other for other in sets) > max(pages, share * len(mine))}
        if found:
            out[host] = found
    return out


@pytest.mark.parametrize(("share", "pages"), [(0.3, 3), (0.3, 40), (0.9, 3), (0.0, 1), (0.0, 19)])
def test_template_lines_are_those_on_many_pages_of_a_host(tmp_path: Path, share: float, pages: int) -> None:
    corpus, texts, urls = sites(tmp_path / "c")
    assert template_lines(corpus, share, pages) == template_lines_in_python(texts, urls, share, pages)


def test_copies_of_a_text_count_once_and_dropped_pages_not_at_all(tmp_path: Path) -> None:
    texts = [weather(0)] * 10 + [prose(i) for i in range(6)]
    urls = ["https://a.example/"] * 16
    corpus = Corpus.from_texts(tmp_path / "c", texts, "s", urls=urls)
    assert template_lines(corpus) == {}
    corpus, _, _ = sites(tmp_path / "s")
    rules = (Rule(name="few", keep="doc < 3 or doc >= 30"),)
    curation.write(corpus, tmp_path / "k", rules, "doc", curation.decide(corpus, rules))
    assert set(template_lines(Corpus(tmp_path / "k"))) == {"blog.example"}


# ── links ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_pages_of_one_template_are_linked_and_posts_in_a_frame_are_not(tmp_path: Path) -> None:
    corpus, texts, _ = sites(tmp_path / "c")
    view = deduped(tmp_path / "d", corpus, links=({"kind": "minhash"}, {"kind": "skeleton"}), bucket=100)
    found = pairs_of(view, "skeleton")
    assert set(found) == {(i, j) for i in range(30) for j in range(i + 1, 30)} and not pairs_of(view, "minhash")
    assert column(view, "cluster.size") == [30] * 30 + [1] * 21
    share = column(view, "skeleton.share")
    whole = {"Home", "About us", "All rights reserved by the weather company and its partners"}
    for i in range(30):
        kept = [s for s in texts[i].split("\n") if s]
        slots = ["".join(re.findall(r"\b(?:[A-Z]\w*|\w*\d\w*|May)\b", s)) if s not in whole else "" for s in kept]
        assert share[i] == pytest.approx(1 - sum(map(len, slots)) / sum(map(len, kept)), abs=1e-6)
    assert found[(0, 1)] == pytest.approx(min(share[:2])) and max(share[30:50]) < 0.1 and share[50] == 0.0
    assert column(view, "skeleton.lines") == [5] * 30 + [3] * 20 + [0]


def test_another_order_of_lines_or_another_host_is_another_skeleton(tmp_path: Path) -> None:
    turned = ["\n".join(reversed(weather(i).split("\n"))) for i in range(30, 50)]
    texts = [weather(i) for i in range(10)] + turned + [weather(i) for i in range(60, 70)]
    urls = ["https://a.example/"] * 30 + ["https://b.example/"] * 10
    found = pairs_of(deduped(tmp_path / "d", Corpus.from_texts(tmp_path / "c", texts, "s", urls=urls), links=(Skeleton(),)))
    groups = [range(10), range(10, 30), range(30, 40)]
    assert set(found) == {(i, j) for g in groups for i in g for j in g if i < j}


def test_every_setting_of_skeleton_matters(tmp_path: Path) -> None:
    corpus, _, _ = sites(tmp_path / "c")

    def count(name: str, **fields: Any) -> int:
        return len(pairs_of(deduped(tmp_path / name, corpus, links=(Skeleton(**fields),), bucket=100)))

    assert count("base") == 435 and count("slot", slot=0.02) == 0 and count("pages", pages=30) == 0
    mixed = [f"Home\n{prose(i, 12)}\n{'some pages have this line, a rather long one' if i < 4 else prose(i + 50, 12)}" for i in range(16)]
    corpus = Corpus.from_texts(tmp_path / "m", mixed, "s")
    views = [deduped(tmp_path / f"m{s}", corpus, links=(Skeleton(share=s, pages=1),)) for s in (0.1, 0.5)]
    assert column(views[0], "skeleton.share")[0] > 0.2 > column(views[1], "skeleton.share")[0]


def test_the_share_is_a_column_without_links_too(tmp_path: Path) -> None:
    corpus, _, _ = sites(tmp_path / "c")
    linked = deduped(tmp_path / "d", corpus, links=(Skeleton(),))
    steps = ({"kind": "templates", "corpus": "docs"}, {"kind": "templates", "name": "often", "corpus": "docs", "pages": 25})
    steps += ({"kind": "templates", "name": "all", "corpus": "docs", "share": 0.99, "pages": 1},)
    view = Annotate(corpus=Input(stage="docs"), steps=steps).run(Context.scratch(tmp_path / "a", docs=corpus))
    assert isinstance(view, Corpus)
    for field in ("share", "lines"):
        assert column(view, f"templates.{field}") == column(linked, f"skeleton.{field}")
    assert max(column(view, "often.lines")[30:]) == 0 < min(column(view, "often.lines")[:30])
    assert column(view, "all.lines")[:30] == column(view, "templates.lines")[:30]
    assert sum(curation.decide(view, (Rule(name="templated", keep="templates.share < 0.7"),)).kept) == 21


def test_shards_and_batches_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    corpus, texts, urls = sites(tmp_path / "c")
    whole = deduped(tmp_path / "one", corpus, links=(Skeleton(),))
    monkeypatch.setattr(artifacts, "SHARD_ROWS", 11)
    monkeypatch.setattr(graph, "BATCH", 4)
    monkeypatch.setattr(graph, "KEYS", 50)
    parts = deduped(tmp_path / "two", Corpus.from_texts(tmp_path / "c2", texts, "s", urls=urls), links=(Skeleton(),))
    assert pairs_of(whole) == pairs_of(parts)
    assert column(whole, "skeleton.share") == column(parts, "skeleton.share")
    assert template_lines(corpus) == template_lines(Corpus(tmp_path / "c2"))


def test_odd_pages(tmp_path: Path) -> None:
    odd = [
        "",
        "\n\n",
        "\x00",
        "x" * 10**6,
        "\n" * 10**5 + "a",
        "😀" * 99,
        "שלום\nעולם",
        *(["日本\n語 1", "日本\n語 2", "日本\n語 3", "日本\n語 4"]),
    ]
    view = deduped(tmp_path / "d", Corpus.from_texts(tmp_path / "c", odd, "s"), links=(Skeleton(),))
    assert set(pairs_of(view)) == {(i, j) for i in range(7, 11) for j in range(i + 1, 11)}
    assert column(view, "skeleton.share")[:2] == [None, None] and template_lines(view) == {"s": frozenset({"日本"})}
    assert deduped(tmp_path / "e", Corpus.from_texts(tmp_path / "n", [], "s"), links=(Skeleton(),)).edges().num_rows == 0
    assert np.array_equal(lines(*hashing.column(batch_of([])["text"])).row, [])
