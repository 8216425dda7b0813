"""Every verb about data, on one small run: what it prints is true, `--json` says the same, and wrong arguments are a usage error.

What is true is found another way: by the stage run again, by plain loops over the columns, by the archive itself, by the batches that the
training stage really read.
"""

from __future__ import annotations

import gzip
import io
import json
import re
import sys
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pytest

from tests.data.make import extracted, ingested, record
from tests.micro import small_crawl
from upslope.cli import main
from upslope.config import Duration, FrozenDict, Input
from upslope.data.artifacts import Corpus, Pages
from upslope.data.protocol import Rule
from upslope.machine import run as machine
from upslope.machine.context import Context
from upslope.machine.stage import Recipe
from upslope.machine.store import Store
from upslope.model.config import dense
from upslope.recipes.load import load
from upslope.recipes.web import QUALITY
from upslope.stages.curate import Curate
from upslope.stages.mix import Mix
from upslope.stages.pretrain import Pretrain
from upslope.tokens.export import read_megatron
from upslope.tokens.shards import TokenShards
from upslope.tokens.tokenizer import Tokenizer
from upslope.train.batch import Batch
from upslope.train.init import Scratch

pytestmark = pytest.mark.xdist_group("data-verbs")

STEPS, ROWS, LENGTH = 2, 2, 96
SETS = ["pages.rows=16", "tokenizer.vocab_size=400"]
STORY = [
    "<p>Early in the morning the boats of the old harbour came home, heavy with fish, and half of the town was waiting for them.</p>",
    "<p>Baskets were carried up forty wet steps to the market, where buyers from three villages already argued about prices.</p>",
    "<p>Nobody could say when the custom started, but every child knew that the first herring of the year belongs to the lighthouse.</p>",
    "<p>When the church bell rang at noon, the stalls were empty, and only gulls were left to look after what had been forgotten.</p>",
]


@dataclass(frozen=True)
class Site:
    """A store with a finished run. archive: what was ingested. seen: (stage, step) → the batch that was trained on."""

    folder: Path
    archive: Path
    seen: dict[tuple[str, int], Batch]

    @property
    def store(self) -> Store:
        return Store(self.folder / "store")

    def data(self, stage: str) -> Path:
        found = machine.record(self.store).stage(stage)
        assert found is not None
        return found.data

    def corpus(self, stage: str = "corpus") -> Corpus:
        return Corpus.load(self.data(stage))

    def call(self, *argv: str | Path) -> tuple[int, str, str]:
        """Exit code, stdout, stderr."""
        out, err, before = io.StringIO(), io.StringIO(), sys.argv
        sys.argv = ["upslope", *map(str, argv)]
        try:
            with redirect_stdout(out), redirect_stderr(err):
                main()
            code = 0
        except SystemExit as e:
            code = int(e.code or 0)
        finally:
            sys.argv = before
        return code, out.getvalue(), err.getvalue()

    def says(self, *argv: str | Path) -> tuple[str, Any]:
        """What the verb prints, and what it prints with --json."""
        at = ("--store", self.folder / "store") if argv[1] not in ("check", "score-extraction") else ()
        code, text, err = self.call(*argv, *at)
        assert code == 0, err
        code, body, err = self.call(*argv, *at, "--json")
        assert code == 0, err
        return text, json.loads(body)


def page(body: Sequence[str], lang: str = "en") -> bytes:
    return f'<html lang="{lang}"><head><title>t</title></head><body><article>{"".join(body)}</article></body></html>'.encode()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    """Every 48th record of the crawl, a story four times (once longer, once by itself), a short page and one that is gone."""
    folder = tmp_path_factory.mktemp("site")
    archive = small_crawl(folder, 48).rename(folder / "site.warc.gz")
    made = [
        record("https://made.example/story", page(STORY)),
        record("https://made.example/copy", page(STORY)),
        record("https://made.example/longer", page([*STORY, "<p>And so it goes on until winter comes.</p>"])),
        record("https://made.example/short", page(["<p>Nothing to see here.</p>"])),
        record("https://made.example/gone", b"<p>gone</p>", status=404),
    ]
    with open(archive, "ab") as f:
        f.writelines(gzip.compress(r, mtime=0) for r in made)
    store, seen = Store(folder / "store"), {}
    web = load("web", SETS, data=str(archive)).recipe
    assert machine.run(web, store, inline=True, workers=1).code == 0
    shards = machine.record(store).stage("shards")
    assert shards is not None
    weights = FrozenDict(dict.fromkeys(TokenShards.load(shards.data).training(), 1.0))
    mix = Mix(shards=(Input(stage="shards"),), weights=weights, tokens=STEPS * ROWS * LENGTH, over="alarm")
    trained = Pretrain(
        init=Scratch(model=dense(32, 1, 1, 1, 32, 64, context=LENGTH)),
        tokenizer=Input(stage="tokenizer"),
        shards=(Input(stage="shards"),),
        mixture=Input(stage="mix"),
        length=Duration(amount=STEPS, unit="st"),
        rows=ROWS,
        row_length=LENGTH,
    )
    from upslope.train import build

    stages = {**web.stages, "mix": mix, "pretrain": trained, "packed": trained.replace(packing="best_fit")}
    with pytest.MonkeyPatch.context() as patch:
        real = build.of_stream

        def watched(stream: Any, first: int, rows: int) -> Batch:
            seen["packed" if stream.sources[0].plan else "pretrain", first // rows] = found = real(stream, first, rows)
            return found

        patch.setattr(build, "of_stream", watched)
        outcome = machine.run(Recipe(name="site", stages=FrozenDict(stages)), store, inline=True, workers=1)
    assert outcome.code == 0, outcome.errors
    return Site(folder, archive, seen)


# ── run, check, funnel, why ───────────────────────────────────────────────────────────────────────────────────────


def test_run_is_the_recipe_web_on_files(site: Site) -> None:
    code, out, err = site.call("data", "run", site.archive, "--store", site.folder / "store", *sets())
    assert code == 0 and out.startswith("9 of 9 reused"), out + err
    body = json.loads(site.call("data", "run", site.archive, "--store", site.folder / "store", *sets(), "--to", "text", "--json")[1])
    assert body["code"] == 0 and body["reused"] == ["pages", "text"] and not body["built"]


def sets() -> list[str]:
    return [part for s in SETS for part in ("--set", s)]


def test_check_says_the_shape_of_an_archive_and_of_rows(site: Site, tmp_path: Path) -> None:
    text, body = site.says("data", "check", site.archive)
    pages = Pages.load(site.data("pages"))
    assert body["rows"] == pages.records and body["rows"] - body["bad_rows"] == len(pages) and f"{pages.records:,} rows" in text
    file = tmp_path / "rows.jsonl"
    file.write_text('{"body": "one row of text"}\n{"body": "another"}\n{oops\n')
    text, body = site.says("data", "check", file, "--map", "text=body")
    assert (body["rows"], body["bad_rows"]) == (3, 1) and [b["where"] for b in body["bad"]] == ["3"] and "3 rows, 1 bad" in text


def test_the_funnel_adds_up(site: Site) -> None:
    text, body = site.says("data", "funnel")
    corpus, pages = site.corpus(), Pages.load(site.data("pages"))
    assert [s["step"] for s in body] == ["records", "pages", "text", "curate", "curate"]
    assert body[0]["docs"] == pages.records == len(pages) + 1 and body[-1]["docs"] == len(corpus)
    left = len(pages)
    for step in body[3:]:
        assert step["docs_in"] == left
        left -= sum(r["first"] for r in step["rules"])
        assert step["docs"] == left
    lines = {re.split(r"\s{2,}", line)[0]: line for line in text.splitlines()}
    for rule in body[3]["rules"]:
        assert f" {rule['failed']:,}" in lines[rule["rule"]]
    assert "http status 404 1" in text


@pytest.mark.parametrize(("by", "column"), [("language", "langid.lang"), ("source", "source"), ("kind", "")])
def test_the_funnel_by_group_is_a_count_of_the_columns(site: Site, by: str, column: str) -> None:
    text, body = site.says("data", "funnel", "--by", by)
    corpus = site.corpus()
    sizes = corpus.table(("bytes", "code_bytes", "math_bytes", "table_bytes"), every=True).to_pylist()
    groups = corpus.table((column,), every=True)[column].to_pylist() if column else [kind_of(r) for r in sizes]
    came: dict[str, list[int]] = {}
    for group, kept in zip(groups, corpus.kept().tolist()):
        entry = came.setdefault(group or "unknown", [0, 0])
        entry[0] += 1
        entry[1] += kept
    shown = {r[by]: (int(r["docs"]), int(r["kept"].split()[0])) for r in body if r[by]}
    assert shown == {g: tuple(c) for g, c in sorted(came.items(), key=lambda x: (-x[1][0], x[0]))[:12]}
    assert all(re.search(rf"(?m)^{re.escape(g)} +{docs} ", text) for g, (docs, _) in shown.items())


def kind_of(row: dict[str, int]) -> str:
    """Math from a hundredth on, else code or tables from a quarter on, else prose."""
    for kind, share in (("math", 0.01), ("code", 0.25), ("table", 0.25)):
        if row[f"{kind}_bytes"] and row[f"{kind}_bytes"] >= share * row["bytes"]:
            return kind
    return "prose"


def test_why_tells_the_fate_of_a_page(site: Site) -> None:
    text, body = site.says("why", "https://made.example/short")
    assert not body[0]["kept"] and "words" in {f["rule"] for f in body[0]["failures"]} and "words=4" in text
    assert site.says("why", "https://made.example/longer")[1][0]["kept"]
    text, body = site.says("why", "https://made.example/gone")
    assert body[0]["rejected"] == "http status 404" and "rejected at ingest" in text
    longer = site.says("why", "https://made.example/longer")[1][0]["doc"]
    for copy in ("story", "copy"):
        text, body = site.says("why", f"https://made.example/{copy}")
        assert [f["value"] for f in body[0]["failures"] if f["rule"] == "duplicate"] == [f"copy of {longer}"]
    assert site.says("why", str(longer))[1][0]["url"] == "https://made.example/longer"


# ── what-if ───────────────────────────────────────────────────────────────────────────────────────────────────────


def rerun(site: Site, folder: Path, stage: str, view: str, **fields: Any) -> Corpus:
    """The curation of a stage made again with other fields."""
    there = machine.record(site.store).stage(stage)
    assert there is not None and there.manifest is not None
    rules = fields.get("rules") or tuple(Rule(**r) for r in there.manifest["config"]["rules"])
    winner = fields.get("winner") or there.manifest["config"]["winner"]
    made = Curate(corpus=Input(stage="in"), rules=rules, winner=winner).run(Context.scratch(folder, **{"in": site.corpus(view)}))
    assert isinstance(made, Corpus)
    return made


def agrees(site: Site, folder: Path, text: str, body: dict[str, Any], stage: str, view: str, **fields: Any) -> Corpus:
    """That what-if says what the stage made again gives."""
    made, was = rerun(site, folder, stage, view, **fields), site.corpus(stage)
    assert body["after"] == made.funnel()[-1] and body["before"] == was.funnel()[-1]
    assert body["gained"] == int((made.kept() & ~was.kept()).sum()) and body["lost"] == int((was.kept() & ~made.kept()).sum())
    assert f"{body['gained']:,} gained, {body['lost']:,} lost" in text and f"{len(was):,} → {len(made):,} documents" in text
    for label, changed in (("gained", made.kept() & ~was.kept()), ("lost", was.kept() & ~made.kept())):
        assert {e["doc"] for e in body["examples"][label]} <= set(was.docs()[changed].tolist())
        assert len(body["examples"][label]) == min(3, int(changed.sum()))
    return made


def test_what_if_a_rule_were_another(site: Site, tmp_path: Path) -> None:
    text, body = site.says("data", "what-if", "site-1/quality", "--rule", "words=gopher.words >= 300")
    rules = tuple(Rule(name="words", keep="gopher.words >= 300") if r.name == "words" else r for r in QUALITY)
    agrees(site, tmp_path, text, body, "quality", "labels", rules=rules)
    words = site.corpus("quality").table(("gopher.words",), every=True)["gopher.words"].to_numpy()
    assert body["lost"] == int((site.corpus("quality").kept() & (words < 300)).sum()) > 0


def test_what_if_there_were_another_rule(site: Site, tmp_path: Path) -> None:
    text, body = site.says("data", "what-if", "site-1/quality", "--rule", "not too long=bytes < 5000")
    made = agrees(site, tmp_path, text, body, "quality", "labels", rules=(*QUALITY, Rule(name="not too long", keep="bytes < 5000")))
    assert body["lost"] > 0 == body["gained"] and max(made.table(("bytes",))["bytes"].to_pylist()) < 5000


def test_what_if_a_rule_were_not_there(site: Site, tmp_path: Path) -> None:
    rule = max((r for r in site.corpus("quality").funnel()[-1]["rules"]), key=lambda r: r["only"])
    assert rule["only"] > 0
    text, body = site.says("data", "what-if", "site-1/quality", "--without", rule["rule"])
    agrees(site, tmp_path, text, body, "quality", "labels", rules=tuple(r for r in QUALITY if r.name != rule["rule"]))
    assert (body["gained"], body["lost"]) == (rule["only"], 0)


def test_what_if_another_copy_won(site: Site, tmp_path: Path) -> None:
    text, body = site.says("data", "what-if", "--winner", "bytes, doc desc")
    agrees(site, tmp_path, text, body, "corpus", "leaks", winner="bytes, doc desc")
    assert {e["url"] for e in body["examples"]["lost"]} >= {"https://made.example/longer"}
    assert {e["url"] for e in body["examples"]["gained"]} >= {"https://made.example/copy"}


def test_what_if_writes_nothing(site: Site) -> None:
    before = {p: p.stat().st_mtime_ns for p in (site.folder / "store").rglob("*")}
    site.says("data", "what-if", "--without", "evaluation items")
    assert {p: p.stat().st_mtime_ns for p in (site.folder / "store").rglob("*")} == before


# ── sample ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_sample_draws_kept_documents_by_seed(site: Site) -> None:
    corpus = site.corpus()
    text, body = site.says("data", "sample", "-n", "7")
    docs = [d["doc"] for d in body["documents"]]
    assert len(set(docs)) == 7 and set(docs) <= set(corpus.docs()[corpus.kept()].tolist()) and body["of"] == len(corpus)
    assert [int(line.split()[0]) for line in text.splitlines() if re.match(r"\d+  ", line)] == docs and f"{body['of']:,} documents" in text
    again, other = (site.says("data", "sample", "-n", "7", "--seed", seed)[1] for seed in ("0", "1"))
    assert again == body and [d["doc"] for d in other["documents"]] != docs
    source = corpus.sources()[0]
    few = site.says("data", "sample", "-n", "999", "--source", source)[1]
    assert few["of"] == len(few["documents"]) == sum(s == source for s in corpus.table(("source",))["source"].to_pylist())


def test_victims_of_a_rule_failed_it(site: Site) -> None:
    labels, name = site.corpus("labels"), "words"
    keep = next(r["keep"] for r in site.corpus().body["decisions"][0]["rules"] if r["name"] == name)
    table = pa.concat_tables(labels.shard(i, ("doc", "bytes", "gopher", "langid")) for i in range(len(labels.files())))
    words = dict(zip(table["doc"].to_pylist(), (g["words"] for g in table["gopher"].to_pylist())))
    with duckdb.connect() as db:
        db.register("documents", table)
        wanted = {row[0] for row in db.sql(f"SELECT doc FROM documents WHERE NOT ({keep})").fetchall()}
    text, body = site.says("data", "sample", "--rule", name, "-n", "999")
    assert {d["doc"] for d in body["documents"]} == wanted and body["of"] == len(wanted) > 1
    for d in body["documents"]:
        value = next(value for rule, value in d["failed"] if rule == name)
        assert f"words={words[d['doc']]}" in value.split(", ") and f"{name}: {value}" in text
    alone = [len(d["failed"]) == 1 for d in body["documents"]]
    assert alone == sorted(alone, reverse=True), "first those that it alone took"
    assert sum(alone) == body["alone"]
    drawn = [site.says("data", "sample", "--rule", name, "-n", "2", "--seed", seed)[1] for seed in ("3", "3")]
    assert drawn[0] == drawn[1] and len(drawn[0]["documents"]) == 2
    copies = site.says("data", "sample", "--rule", "duplicate", "-n", "999")[1]["documents"]
    assert {d["url"] for d in copies} >= {"https://made.example/story", "https://made.example/copy"}
    source = labels.sources()[0]
    few = site.says("data", "sample", "--rule", name, "--source", source)[1]
    assert few["alone"] <= few["of"] <= body["of"]


# ── lineage ───────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("stage", ["pretrain", "packed"])
@pytest.mark.parametrize("step", range(STEPS))
def test_lineage_leads_from_the_tokens_that_were_trained_on_to_the_archive(site: Site, stage: str, step: int) -> None:
    text, body = site.says("data", "lineage", f"{stage}:{step}")
    batch, tokenizer, corpus = site.seen[stage, step], Tokenizer.load(site.data("tokenizer")), site.corpus()
    bounds = np.flatnonzero(np.diff(batch.seg.numpy(), prepend=-1, append=-1))
    pieces = [batch.ids[a:b].tolist() for a, b in zip(bounds[:-1], bounds[1:])]
    assert len(pieces) == len(body) > 0
    for ids, said in zip(pieces, body):
        start, stop = said["tokens"]
        assert len(ids) == stop - start
        whole = corpus.lookup(np.array([said["doc"]], np.uint64))[said["doc"]]
        again = [*tokenizer.encode(whole), tokenizer.eos]
        assert ids == again[start:stop], "these tokens of this document"
        assert tokenizer.decode([i for i in ids if i != tokenizer.eos]).strip("\ufffd") in whole
        url, words = archived(site.archive, said["record"])
        assert url == said["url"] and said["kept"] and said["corpus"] == "corpus"
        first = re.findall(r"[A-Za-z]{4,}", whole)[:5]
        assert all(w.encode() in words for w in first), "the text is that of the record"
        assert said["record"] in text and f"tokens {start}–{stop} of {url}" in text
    row = site.says("data", "lineage", f"{stage}:{step}:1", "--run", "site-1")[1]
    assert row == [b for b in body if b["row"] == 1]


def archived(archive: Path, place: str) -> tuple[str, bytes]:
    """URL and body of the record at FILE@OFFSET."""
    from fastwarc.warc import ArchiveIterator

    name, _, offset = place.rpartition("@")
    assert name == archive.name
    with open(archive, "rb") as f:
        f.seek(int(offset))
        found = next(iter(ArchiveIterator(f, parse_http=True)))
        return str(found.headers["WARC-Target-URI"]), bytes(found.reader.read())


# ── export, score-extraction ──────────────────────────────────────────────────────────────────────────────────────


def test_dolma_documents_read_back_with_equal_texts(site: Site, tmp_path: Path) -> None:
    text, body = site.says("data", "export", tmp_path / "out")
    corpus = site.corpus()
    assert body == {"documents": len(corpus), "bytes": sum(corpus.table(("bytes",))["bytes"].to_pylist())}
    assert f"{body['documents']:,} documents" in text
    pages, _ = ingested(tmp_path / "in", tmp_path / "out")
    back, _ = extracted(tmp_path / "back", pages)
    assert list(back.texts()) == list(corpus.texts())
    for column in ("url", "source", "licence", "date"):
        assert [x or "" for x in back.table((column,))[column].to_pylist()] == [
            x or "" for x in corpus.table((column,))[column].to_pylist()
        ]


def test_megatron_pairs_hold_the_token_shards(site: Site, tmp_path: Path) -> None:
    text, body = site.says("data", "export", tmp_path / "out", "--format", "megatron")
    shards = TokenShards.load(site.data("shards"))
    assert body == {s: shards.counts(s).tokens for s in shards.sources()} and f"{sum(body.values()):,} tokens" in text
    for source in shards.sources():
        tokens, offsets = read_megatron(tmp_path / "out" / source.replace("/", "_"))
        np.testing.assert_array_equal(tokens, shards.tokens(source))
        np.testing.assert_array_equal(offsets, shards.offsets(source))


def test_extraction_is_scored_on_pages_with_gold(site: Site, tmp_path: Path) -> None:
    pytest.importorskip("upslope.data.extract.score")
    (tmp_path / "html").mkdir()
    gold = {}
    for name, paragraphs in (("good", STORY), ("other", STORY[:2])):
        (tmp_path / "html" / f"{name}.html").write_bytes(page(paragraphs))
        gold[name] = {"articleBody": " ".join(re.sub(r"<[^>]+>", "", p) for p in paragraphs), "url": f"https://made.example/{name}"}
    (tmp_path / "ground-truth.json").write_text(json.dumps(gold))
    text, perfect = site.says("data", "score-extraction", tmp_path)
    assert perfect["f1"] == pytest.approx(1.0) and "1.000" in text
    gold["good"]["articleBody"] = "Quite another text that nobody finds on this page, whatever they do."
    (tmp_path / "ground-truth.json").write_text(json.dumps(gold))
    assert site.says("data", "score-extraction", tmp_path)[1]["f1"] < 0.9


# ── wrong arguments ───────────────────────────────────────────────────────────────────────────────────────────────

WRONG = {
    "run without files": (("data", "run"), "Missing argument"),
    "run on a file that is not there": (("data", "run", "nowhere.warc.gz"), "no such file"),
    "run with a wrong map": (("data", "run", "FILE", "--map", "text"), "OURS=THEIRS"),
    "run with an unknown value": (("data", "run", "FILE", "--set", "quality.ruels=1"), "ruels"),
    "run with an unknown engine": (("data", "run", "FILE", "--set", "seed=5", "--engine", "spark"), "no engine 'spark'"),
    "check of nothing": (("data", "check", "nowhere.jsonl"), "nowhere.jsonl"),
    "check with a wrong map": (("data", "check", "FILE", "--map", "text"), "OURS=THEIRS"),
    "funnel of an unknown run": (("data", "funnel", "site-9"), "no run named 'site-9'"),
    "funnel of an unknown stage": (("data", "funnel", "site-1/corpsu"), "no corpus 'corpsu'"),
    "funnel by something else": (("data", "funnel", "--by", "colour"), "language, kind, source"),
    "what-if of a stage without decisions": (("data", "what-if", "site-1/labels"), "nothing was decided"),
    "what-if with half a rule": (("data", "what-if", "--rule", "words"), "NAME=PREDICATE"),
    "what-if with a rule that does not parse": (("data", "what-if", "--rule", "x=bytes >"), "DuckDB expression"),
    "what-if on a column that is not there": (("data", "what-if", "--rule", "x=gopher.wrods > 5"), "gopher.words"),
    "what-if with a rule that is no truth": (("data", "what-if", "--rule", "x=bytes"), "not true or false"),
    "what-if without an unknown rule": (("data", "what-if", "--without", "wrods"), "no such rule"),
    "what-if with a wrong winner": (("data", "what-if", "--winner", "byts"), "byts"),
    "sample of an unknown rule": (("data", "sample", "--rule", "wrods"), "no rule 'wrods'"),
    "sample of none": (("data", "sample", "-n", "0"), "greater than or equal to 1"),
    "sample of an unknown source": (("data", "sample", "--source", "nowhere"), "no source 'nowhere'"),
    "lineage of a stage that trains nothing": (("data", "lineage", "corpus:0"), "STAGE:STEP"),
    "lineage without a step": (("data", "lineage", "pretrain"), "STAGE:STEP"),
    "lineage of a word": (("data", "lineage", "pretrain:one"), "STAGE:STEP"),
    "lineage of a row too many": (("data", "lineage", f"pretrain:0:{ROWS}"), f"{ROWS} rows"),
    "lineage of a step too many": (("data", "lineage", f"pretrain:{STEPS}"), f"{STEPS} steps"),
    "lineage of an unknown run": (("data", "lineage", "pretrain:0", "--run", "site-9"), "no run named"),
    "export to another format": (("data", "export", "out", "--format", "csv"), "dolma, megatron"),
    "export of an unknown run": (("data", "export", "out", "--corpus", "site-9"), "no run named"),
    "why of an unknown page": (("why", "https://made.example/storry"), "https://made.example/story"),
    "why of an unknown document": (("why", "99999999999999"), "numbered"),
    "score of nothing": (("data", "score-extraction", "nowhere"), "nowhere"),
    "score of an unknown extractor": (("data", "score-extraction", "FILE", "--extractor", "magic"), "magic"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_arguments(site: Site, case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    argv, message = WRONG[case]
    if "score-extraction" in argv:
        pytest.importorskip("upslope.data.extract.score")
    monkeypatch.chdir(tmp_path)
    at = () if argv[1] in ("check", "score-extraction") else ("--store", site.folder / "store")
    code, _, err = site.call(*(str(site.archive) if a == "FILE" else a for a in argv), *at)
    assert code == 2, err
    assert message in err and "Traceback" not in err and len([x for x in err.splitlines() if x.strip()]) <= 6, err
    assert not list(tmp_path.iterdir())
