"""The stage long_context: facts are those of its table, it resumes, every field bites; the report shows it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from tests.model.support import loud, tokenizer
from upslope.config import Input, dump
from upslope.evals.artifacts import Table
from upslope.evals.needle import Needle
from upslope.evals.position_nll import PositionNll
from upslope.evals.subject import Deployment
from upslope.machine.context import Context
from upslope.machine.stage import Artifact, Paused
from upslope.model.checkpoint import Checkpoint
from upslope.model.config import Normal, dense
from upslope.stages.evaluate import Evaluate
from upslope.stages.long_context import LongContext
from upslope.tokens.shards import TokenShards

MODEL = dense(16, 1, 2, 1, 8, 24, context=32, vocab=300, init=Normal(std=0.2))
NEEDLE = Needle(lengths=(24, 48), depths=(0.0, 0.5), samples=4, key=3)
POSITION = PositionNll(length=64, documents=4)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    root = tmp_path_factory.mktemp("world")
    texts = [" ".join(f"{i * k % 17} of {k}" for k in range(1, 60)) for i in range(6)]
    shards = TokenShards.write(root / "shards", tokenizer(), {"x": texts[:2], "x@heldout": texts, "y@heldout": ["short", *texts[:1]]})
    return {"base": Checkpoint.write(root / "base", loud(MODEL), tokenizer()), "shards": shards}


def stage(**fields: Any) -> LongContext:
    fixed: dict[str, Any] = {"needle": NEEDLE, "position": POSITION}
    return LongContext(checkpoint=Input(stage="base"), shards=(Input(stage="shards"),), **{**fixed, **fields})


def ran(folder: Path, inputs: dict[str, Artifact], seed: int = 0, **fields: Any) -> tuple[Table, Context]:
    ctx = Context.scratch(folder, seed, **inputs)
    return stage(**fields).run(ctx), ctx


def test_facts_are_those_of_the_table_and_the_table_that_of_an_evaluation(tmp_path: Path, inputs: dict[str, Artifact]) -> None:
    table, ctx = ran(tmp_path / "a", inputs)
    grid, curve = ctx.facts["needle"], ctx.facts["position_nll"]
    by_suite = {(e.suite, e.group, e.metric): e for e in table.summary(1)}
    for row in grid["lengths"]:
        e = by_suite["needle", f"{row['length']:07d}", "correct"]
        assert (row["found"], row["n"]) == (round(e.value, 5), e.n) == (round(e.value, 5), 8)
        assert e.interval is not None and (row["low"], row["high"]) == (round(e.interval.low, 5), round(e.interval.high, 5))
    for b in curve["buckets"]:
        e = by_suite["position_nll", f"{b['from']:07d}-{b['to']:07d}", "nll"]
        assert (b["nll"], b["n"]) == (round(e.value, 5), 5)  # four documents of x, one of y: the short one is left out
    assert curve["beyond"]["past"] == 32
    assert len(ctx.facts["text"].splitlines()) == 4 + 1 + 1 + len(curve["buckets"]) + 1
    assert ctx.headline.startswith("needles found in 48 tokens: ")
    plain = Evaluate(checkpoint=Input(stage="base"), shards=(Input(stage="shards"),), suites=(NEEDLE, POSITION))
    other = plain.run(Context.scratch(tmp_path / "b", 0, **inputs))
    assert other.rows() == table.rows()
    assert ran(tmp_path / "c", inputs)[1].facts == ctx.facts


def test_it_stops_and_goes_on(tmp_path: Path, inputs: dict[str, Artifact], monkeypatch: pytest.MonkeyPatch) -> None:
    whole = ran(tmp_path / "whole", inputs)[1]
    ctx = Context.scratch(tmp_path / "cut", 0, **inputs)
    real = Needle.run

    def stopping(self: Needle, bench: Any) -> Any:
        rows = real(self, bench)
        ctx.stopping = True
        return rows

    monkeypatch.setattr(Needle, "run", stopping)
    with pytest.raises(Paused):
        stage().run(ctx)
    monkeypatch.setattr(Needle, "run", lambda *a: pytest.fail("the needles were done"))
    ctx.stopping = False
    stage().run(ctx)
    assert ctx.facts == whole.facts


CHANGES: dict[str, Any] = {
    "needle": NEEDLE.replace(samples=5),
    "position": POSITION.replace(length=50),
    "deployment": Deployment(numerics="bf16"),
}


@pytest.mark.parametrize("field", CHANGES)
def test_every_field_changes_the_facts(tmp_path: Path, inputs: dict[str, Artifact], field: str) -> None:
    assert ran(tmp_path / "a", inputs)[1].facts != ran(tmp_path / "b", inputs, **{field: CHANGES[field]})[1].facts


def test_the_seed_decides_the_needles_alone(tmp_path: Path, inputs: dict[str, Artifact]) -> None:
    a, b = (ran(tmp_path / str(seed), inputs, seed)[1].facts for seed in (0, 1))
    assert a["needle"] != b["needle"]
    assert a["position_nll"] == b["position_nll"]


def test_suites_are_found_by_kind_in_any_evaluation() -> None:
    made = Evaluate.model_validate(
        {"checkpoint": {"stage": "base"}, "suites": [{"kind": "needle", "samples": 3}, {"kind": "position_nll", "length": 9}]}
    )
    assert made.suites == (Needle(samples=3), PositionNll(length=9))


def test_the_checks_survive_a_recipe_file_and_other_suites_are_refused() -> None:
    made = stage()
    assert LongContext.model_validate({k: v for k, v in dump(made).items() if k != "kind"}) == made
    with pytest.raises(ValidationError, match="a suite of kind 'needle' is wanted"):
        stage(needle=POSITION)
