"""A curation drops, and only it; it has a reason for every drop, and for every other rule that would have dropped as well."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from tests.data.make import files_of
from upslope.config import Input, UsageError
from upslope.data import curation, funnel, shards
from upslope.data.annotators.gopher import Gopher
from upslope.data.annotators.langid import LangId
from upslope.data.artifacts import Corpus
from upslope.data.protocol import Rule
from upslope.machine.context import Context
from upslope.machine.files import digest_file, write_json
from upslope.stages.annotate import Annotate
from upslope.stages.curate import Curate
from upslope.stages.dedup import Dedup


@pytest.fixture
def view(tmp_path: Path) -> Corpus:
    """Ten documents with q.score = 0.0, 0.1 … (the last two NULL) and q.kind = even / odd; 2, 4 and 6 are copies of one another."""
    texts = [f"document number {i} " + ("copy" if i in (2, 4, 6) else str(i)) for i in range(10)]
    base = Corpus.from_texts(tmp_path / "c", texts, "s", urls=[f"u/{i}" for i in range(10)])
    table = pa.table({"score": pa.array([i / 10 if i < 8 else None for i in range(10)], pa.float32()), "kind": ["even", "odd"] * 5})
    shards.write(tmp_path / "v" / "q.parquet", table, {"text": digest_file(base.files()[0].path)})
    noted = Corpus.with_columns(base, tmp_path / "v", [("q", 1, {"score": "float32", "kind": "string"}, [tmp_path / "v" / "q.parquet"])])
    body = noted.derive(tmp_path / "w")
    edges = [{"a": a, "b": a + 2, "similarity": 0.9, "kind": "minhash"} for a in (2, 4)]
    shards.write(tmp_path / "w" / "edges.parquet", shards.rows_to_table(edges, shards.EDGE))
    write_json(tmp_path / "w" / "corpus.json", {**body, "edges": ["edges.parquet"]})
    return Corpus.load(tmp_path / "w")


def curated(folder: Path, corpus: Corpus, rules: dict[str, str], winner: str = "doc") -> tuple[Corpus, Context]:
    ctx = Context.scratch(folder, docs=corpus)
    made = Curate(corpus=Input(stage="docs"), rules=tuple(Rule(name=n, keep=k) for n, k in rules.items()), winner=winner).run(ctx)
    assert isinstance(made, Corpus)
    return made, ctx


RULES = {"high": "q.score >= 0.25", "even": "q.kind = 'even'", "mixed": "q.score < 0.65 or q.kind = 'odd'"}


def test_every_failure_is_in_the_ledger_and_no_rule_exits_early(view: Corpus, tmp_path: Path) -> None:
    made, ctx = curated(tmp_path / "k", view, RULES)
    scores = [np.float32(i / 10) if i < 8 else None for i in range(10)]
    truth: dict[str, set[int]] = {
        "high": {i for i in range(10) if scores[i] is not None and not scores[i] >= 0.25},  # type: ignore[operator]
        "even": {i for i in range(10) if i % 2},
        "mixed": {i for i in range(10) if scores[i] is not None and not (scores[i] < 0.65 or i % 2)},  # type: ignore[operator]
        "duplicate": {2, 6},  # 4 is the first of its copies that meets every rule; 2 is before it but fails `high`
    }
    names = [*RULES, "duplicate"]
    bits = np.unpackbits(np.load(made.path / "failed.npy"), axis=1, count=10)
    assert {n: set(np.flatnonzero(b)) for n, b in zip(names, bits)} == truth
    dead = set().union(*truth.values())
    assert set(np.flatnonzero(~made.kept())) == dead and len(made) == 10 - len(dead)
    assert [d for b in made.batches(("doc",)) for d in b["doc"].to_pylist()] == [4, 8]
    for row in ctx.facts["funnel"]["rules"]:
        others = set().union(*(docs for name, docs in truth.items() if name != row["rule"]))
        assert row["failed"] == len(truth[row["rule"]]) and row["only"] == len(truth[row["rule"]] - others)
    assert {r["rule"]: r["unknown"] for r in ctx.facts["funnel"]["rules"]} == {"high": 2, "even": 0, "mixed": 1, "duplicate": 0}
    assert sum(r["first"] for r in ctx.facts["funnel"]["rules"]) == len(dead)
    assert ctx.facts["funnel"]["languages"] == {
        "unknown": {"docs_in": 10, "docs": 2, "rules": {"high": [3, 1], "even": [5, 4], "duplicate": [2, 1]}}
    }


def test_null_is_not_computed_and_keeps(view: Corpus, tmp_path: Path) -> None:
    made, ctx = curated(tmp_path / "k", view, {"high": "q.score >= 0.75"}, winner="doc")
    assert [d for b in made.batches(("doc",)) for d in b["doc"].to_pylist()] == [8, 9]
    assert ctx.facts["funnel"]["rules"][0]["unknown"] == 2
    made, _ = curated(tmp_path / "l", view, {"computed": "q.score is not null", "always": "NULL"})
    assert set(np.flatnonzero(~made.kept())) == {4, 6, 8, 9}


def test_the_winner_order_chooses_among_copies(view: Corpus, tmp_path: Path) -> None:
    made, _ = curated(tmp_path / "a", view, {}, winner="q.score desc, doc")
    assert set(np.flatnonzero(~made.kept())) == {2, 4}
    assert str(made.why("u/2")[0]) == (
        "u/2 · document 2: dropped by 1 rule\n"
        "  duplicate: copy of 6 where it must hold that it is the first of its copies by q.score desc, doc"
    )
    made, _ = curated(tmp_path / "b", view, {}, winner="abs(doc - 4)")
    assert set(np.flatnonzero(~made.kept())) == {2, 6}


def test_why(view: Corpus, tmp_path: Path) -> None:
    made, _ = curated(tmp_path / "k", view, RULES)
    fate = made.why("u/1")[0]
    assert (fate.doc, fate.kept) == (1, False) and [(f.rule, f.keep, f.value) for f in fate.failures] == [
        ("high", "q.score >= 0.25", "score=0.1"),
        ("even", "q.kind = 'even'", "kind=odd"),
    ]
    assert made.why(4)[0].kept and made.why("8")[0].kept and str(made.why(8)[0]) == "u/8 · document 8: kept; it failed no rule"
    with pytest.raises(UsageError, match=r"no page 'u/11' in this corpus\ndid you mean u/1"):
        made.why("u/11")


def test_a_second_curation_looks_at_the_living_and_keeps_the_history(view: Corpus, tmp_path: Path) -> None:
    first, _ = curated(tmp_path / "a", view, {"even": RULES["even"]})
    second, ctx = curated(tmp_path / "b", first, {"high": RULES["high"]})
    assert ctx.facts["funnel"]["docs_in"] == 3 and set(np.flatnonzero(second.kept())) == {8}
    assert [f.rule for f in second.why("u/0")[0].failures] == ["high"] and [f.rule for f in second.why("u/1")[0].failures] == ["even"]
    names = [r.name for r in funnel.rows(second.funnel())]
    assert names == ["text", "even", "duplicate", "high", "duplicate"] and funnel.rows(second.funnel())[-1].docs == 1
    assert "even" in funnel.render(second.funnel()) and funnel.by(second.funnel(), "sources") == [("s", 10, 1)]
    again, _ = curated(tmp_path / "e", first, {"high": RULES["high"]})
    assert files_of(again.path) == files_of(second.path)


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ("q.score >>= 3 (", "is not a DuckDB expression"),
        ("q.scoer > 1", r"no column 'q.scoer'\ndid you mean q.score"),
        ("score > 1", "did you mean q.score"),
        ("q.score", "is of type FLOAT, not true or false"),
        ("q.kind > 1", "fails\nBinder Error: Cannot compare"),
        ("cast(q.kind as int) > 1", "fails\nConversion Error"),
        ("max(q.score) > 1", "gave one answer for all documents"),
        ("count(*) > 1", "fails\n|one document only"),
        ("row_number() over () > 1", "holds a window function"),
        ("q.score > (select 1)", "holds a subquery"),
        ("random() < 0.5", r"calls random\(\)"),
        ("true; select 1", "is not a DuckDB expression"),
        ("true), (false", "is not one expression"),
    ],
)
def test_a_wrong_rule_says_what_is_wrong(view: Corpus, tmp_path: Path, rule: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as e:
        curated(tmp_path / "k", view, {"mine": rule})
    assert "'mine'" in str(e.value) and len(str(e.value).splitlines()) <= 6


def test_a_wrong_winner_a_double_name_and_an_empty_result_are_errors(view: Corpus, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="winner: this corpus has no column 'q"):
        curated(tmp_path / "a", view, {}, winner="q.scoer desc")
    with pytest.raises(UsageError, match="needs a name of its own"):
        curation.parse([Rule(name="a", keep="true"), Rule(name="a", keep="true")])
    with pytest.raises(UsageError, match="no document is left: of 10, 10 fail rule 'none'"):
        curated(tmp_path / "b", view, {"none": "false"})
    problems = Curate(corpus=Input(stage="docs"), rules=(Rule(name="x", keep="a +"),)).check({})
    assert [p.path for p in problems] == ["rules"] and "not a DuckDB expression" in problems[0].message


def test_rules_over_real_annotations_and_text(tmp_path: Path) -> None:
    texts = ["the cat and the dog have to be here " * 8, "the cat and the dog have to be here " * 8 + ".", "short", "# # # # # # " * 20]
    corpus = Corpus.from_texts(tmp_path / "c", texts, "s")
    noted = Annotate(corpus=Input(stage="d"), steps=(Gopher(), LangId())).run(Context.scratch(tmp_path / "n", d=corpus))
    linked = Dedup(corpus=Input(stage="d")).run(Context.scratch(tmp_path / "d", d=noted))
    assert isinstance(linked, Corpus)
    rules = {"words": "gopher.words between 50 and 100000", "symbols": "gopher.symbol_ratio <= 0.1", "mark": "text not like '#%'"}
    made, ctx = curated(tmp_path / "k", linked, rules, "bytes desc")
    assert [d for b in made.batches(("doc",)) for d in b["doc"].to_pylist()] == [1]
    assert [f.rule for f in made.why(3)[0].failures] == ["words", "symbols", "mark"]
    assert "en" in ctx.facts["funnel"]["languages"] and set(made.refs()) == {p.absolute() for p in (corpus.path, noted.path, linked.path)}
