"""RL-readiness: estimators against brute force, verdicts against known answers, the stage on policies that are written down."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from tests.model.support import tokenizer as make_tokenizer
from tests.rl.support import trace
from upslope.chat.messages import Message
from upslope.config import Input, UsageError
from upslope.evals.readiness import PlainText, Sampled, Thresholds, judge, mixed_at, pass_at, repeated, rows_of, sampled
from upslope.machine.context import Context
from upslope.model.checkpoint import Checkpoint
from upslope.rl.protocol import Done, Score
from upslope.rl.rewards import Random
from upslope.stages.readiness import Readiness
from upslope.stats.intervals import wilson
from upslope.tasks.artifacts import Tasks
from upslope.tasks.task import Task


@pytest.mark.parametrize(("n", "c"), [(6, 0), (6, 1), (6, 3), (6, 6), (5, 4)])
def test_estimators_are_the_mean_over_all_subsets(n: int, c: int) -> None:
    right = [i < c for i in range(n)]
    for k in range(1, n + 1):
        subsets = list(itertools.combinations(right, k))
        assert pass_at(n, c, k) == pytest.approx(np.mean([any(s) for s in subsets]), abs=1e-12)
        assert mixed_at(n, c, k) == pytest.approx(np.mean([any(s) and not all(s) for s in subsets]), abs=1e-12)
    assert pass_at(n, c, n) == float(c > 0)
    assert mixed_at(n, c, n) == float(0 < c < n)
    with pytest.raises(ValueError, match="needs 1 <= k <= n"):
        pass_at(n, c, n + 1)


def test_estimators_are_unbiased() -> None:
    p, n, k = 0.3, 9, 4
    weights = [math.comb(n, c) * p**c * (1 - p) ** (n - c) for c in range(n + 1)]
    assert sum(w * pass_at(n, c, k) for c, w in enumerate(weights)) == pytest.approx(1 - (1 - p) ** k, abs=1e-12)
    assert sum(w * mixed_at(n, c, k) for c, w in enumerate(weights)) == pytest.approx(1 - p**k - (1 - p) ** k, abs=1e-12)


def test_repetition_counts_n_grams_that_came_before() -> None:
    assert repeated([1, 2, 3, 4], 2) == 0
    assert repeated([1, 2, 1, 2, 1, 2], 2) == pytest.approx(3 / 5)
    assert repeated([5] * 10, 4) == pytest.approx(6 / 7)
    assert repeated([1, 2], 4) == 0


def group(right: int, of: int = 8, **more: Any) -> list[Sampled]:
    return [Sampled(i < right, True, True, 5, 0.0, str(i))._replace(**more) for i in range(of)]


def test_the_verdict_follows_from_the_numbers() -> None:
    def verdict(groups: list[list[Sampled]], **bounds: Any) -> Any:
        return judge(rows_of("r", {f"f/1/{i}": g for i, g in enumerate(groups)}, (1, 8), 8), Thresholds(**bounds), 8)

    half = [group(4)] * 50 + [group(0)] * 50
    ready = verdict(half)
    assert ready.verdict == "ready"
    want = wilson(50, 100)
    assert ready.json()["numbers"]["mixed"] == {"value": 0.5, "n": 100, "low": round(want.low, 5), "high": round(want.high, 5)}
    assert ready.text().startswith("ready: 50.0% [40.4%, 59.6%] of 100 groups of 8 have both right and wrong answers")
    assert ready.estimates["pass@8"].value == 0.5 and ready.estimates["correct"].value == pytest.approx(0.25)
    assert ready.estimates["none"].value == 0.5 and ready.estimates["every"].value == 0
    assert verdict(half, mixed=0.5).verdict == "unclear"
    assert verdict(half, mixed=0.7).verdict == "not ready"
    assert verdict(half, mixed=None).verdict == "ready"
    assert verdict([group(0)] * 60).verdict == verdict([group(8)] * 60).verdict == "not ready"
    for field, more in (
        ("formatted", {"formatted": False}),
        ("truncated", {"ended": False}),
        ("repetition", {"repetition": 0.9}),
        ("collapsed", {"says": "x"}),
    ):
        bad = verdict([group(4, **more)] * 60)
        assert bad.verdict == "not ready"
        assert [c.name for c in bad.checks if c.status == "missed"] == [field]
        assert f"{field} " in bad.text()
        assert verdict([group(4, **more)] * 60, **{field: None}).verdict == "ready"
        assert field in bad.lines()


def test_tasks_that_could_not_be_graded_are_left_out() -> None:
    rows = rows_of("r", {"a": group(4), "b": group(2, of=5)}, (1,), 8)
    assert {r.item for r in rows} == {"a"}
    with pytest.raises(UsageError, match="no task has 8 graded samples"):
        rows_of("r", {"b": group(2, of=5)}, (1,), 8)
    assert sampled(trace(Score(0.0, False)), "", 4) is None
    said = Message("assistant", "answer: 4")
    assert sampled(trace(1.0, ids=[3, 3, 3, 3, 3], reply=said), "answer:", 4) == Sampled(True, True, True, 5, 0.5, "".join(_says([3] * 5)))
    assert sampled(trace(1.0, reply=said), "result:", 4)._replace(says="", tokens=0) == Sampled(True, False, True, 0, 0.0, "")  # type: ignore[union-attr]
    cut = sampled(trace(0.0, reply=said, done=Done.LENGTH), "answer:", 4)
    assert cut is not None and not cut.ended and not cut.formatted


def _says(ids: list[int]) -> str:
    import hashlib

    return hashlib.blake2b(np.asarray(ids, np.int64).tobytes(), digest_size=8).hexdigest()


def test_plain_text_is_what_documents_look_like() -> None:
    t = make_tokenizer()
    plain = PlainText(t, "answer:")
    opened = plain.open([{"role": "system", "content": "be"}, {"role": "user", "content": "add: 1 + 2"}])
    assert opened.ids.tolist() == t.encode("be\nadd: 1 + 2\n")
    assert not opened.trainable.any()
    said = plain.parse([*t.encode("1+2=3\nanswer: 3"), t.eos, *t.encode("rest")])
    assert (said.content, said.reasoning) == ("answer: 3", "1+2=3")
    assert plain.parse(t.encode("just words")) == Message("assistant", "just words")
    assert PlainText(t, "").parse(t.encode("answer: 3")).content == "answer: 3"
    with pytest.raises(UsageError, match="no think block"):
        plain.open([{"role": "user", "content": "x"}], think=True)


# ── the stage ─────────────────────────────────────────────────────────────────────────────────────────────────────


def policy(folder: Path, right: float) -> Checkpoint:
    """After a line break it says "1" with probability `right`, else "2"; after a digit it ends."""
    import torch

    from upslope.model.config import dense
    from upslope.model.init import initialise
    from upslope.model.transformer import Transformer

    t = make_tokenizer()
    model = initialise(Transformer(dense(32, 1, 2, 2, 16, 32, context=128, vocab=t.vocab_size)), 7)  # every branch starts at zero
    one, two, line = t.encode("1")[0], t.encode("2")[0], t.encode("\n")[-1]
    with torch.no_grad():
        model.embed.weight.zero_()
        model.embed.weight[:, 2] = 1.0
        for token, channel in ((line, 0), (one, 1), (two, 1)):
            model.embed.weight[token] = 0.0
            model.embed.weight[token, channel] = 1.0
        unit = 32**-0.5  # the norm makes a one of 32 channels the root of 32
        model.head_weight.zero_()
        model.head_weight[[one, two], 0] = torch.tensor([40.0 + math.log(right / (1 - right)), 40.0]) * unit
        model.head_weight[t.eos, 1] = 40.0 * unit
    return Checkpoint.write(folder, model, t)


@pytest.fixture(scope="module")
def problems(tmp_path_factory: pytest.TempPathFactory) -> Tasks:
    tasks = [Task(f"t{i}", ("say", "tell")[i % 2], ({"role": "user", "content": f"say {i}"},), (), {"answer": "1"}, 1.0) for i in range(60)]
    return Tasks.write(tmp_path_factory.mktemp("tasks"), [(t, "train", t.id) for t in tasks])  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def even(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return policy(tmp_path_factory.mktemp("policy"), 0.3)


def stage(**fields: Any) -> Readiness:
    fixed: dict[str, Any] = {"prompts": 40, "samples": 4, "group": 4, "ks": (1, 4), "max_new": 4, "marker": ""}
    return Readiness(checkpoint=Input(stage="base"), tasks=Input(stage="tasks"), **{**fixed, **fields})


def ran(folder: Path, base: Checkpoint, tasks: Tasks, seed: int = 0, **fields: Any) -> Context:
    ctx = Context.scratch(folder, seed, base=base, tasks=tasks)
    stage(**fields).run(ctx)
    return ctx


def test_a_policy_with_a_known_chance_gives_its_numbers(tmp_path: Path, even: Checkpoint, problems: Tasks) -> None:
    ctx = ran(tmp_path, even, problems, prompts=60, thresholds=Thresholds(collapsed=0.6))
    numbers = ctx.facts["numbers"]
    for name, truth in (("correct", 0.3), ("pass@4", 1 - 0.7**4), ("mixed", 1 - 0.7**4 - 0.3**4), ("none", 0.7**4)):
        assert numbers[name]["low"] - 0.02 <= truth <= numbers[name]["high"] + 0.02, name
    assert numbers["formatted"]["value"] == 1.0 and numbers["truncated"]["value"] == 0.0
    assert numbers["tokens"]["value"] == 2.0 and ctx.facts["tokens"] == {"p5": 2, "p50": 2, "p95": 2}
    assert ctx.facts["ungraded"] == 0
    assert ctx.facts["verdict"] == "ready" and ctx.headline.startswith("ready: ")
    assert ctx.facts["text"].splitlines()[0] == ctx.headline


@pytest.mark.parametrize("right", [0.001, 0.999])
def test_a_policy_that_is_always_wrong_or_always_right_is_not_ready(tmp_path: Path, problems: Tasks, right: float) -> None:
    ctx = ran(tmp_path / "run", policy(tmp_path / "p", right), problems)
    assert ctx.facts["verdict"] == "not ready"
    assert "mixed" in ctx.headline and "collapsed" in ctx.headline


CHANGES: dict[str, Any] = {
    "reward": Random(),
    "families": ("say",),
    "prompts": 30,
    "samples": 5,
    "group": 3,
    "ks": (1, 2),
    "max_new": 1,
    "temperature": 3.0,
    "top_p": 0.5,
    "form": "chat",
    "marker": "1",
    "ngram": 1,
    "thresholds": Thresholds(mixed=0.99),
}


def test_think_and_numerics_change_the_facts(tmp_path: Path, even: Checkpoint, problems: Tasks) -> None:
    def facts(name: str, **fields: Any) -> dict[str, Any]:
        return ran(tmp_path / name, even, problems, form="chat", **fields).facts

    plain = facts("plain")
    assert plain["numbers"]["formatted"]["value"] > 0.9
    forced = facts("forced", think="forced")
    assert forced["numbers"]["correct"]["value"] == 0  # it never closes the think block that was opened for it
    assert facts("bf16", numerics="bf16", temperature=2.0) != facts("fp32", temperature=2.0)


@pytest.mark.parametrize("field", CHANGES)
def test_every_field_changes_the_facts(tmp_path: Path, even: Checkpoint, problems: Tasks, field: str) -> None:
    plain: dict[str, Any] = {"prompts": 24} if field != "prompts" else {}
    plain |= {"temperature": 9.0, "max_new": 30} if field == "ngram" else {}  # long enough to repeat something
    a, again = (ran(tmp_path / n, even, problems, **plain) for n in "ab")
    assert a.facts == again.facts
    assert ran(tmp_path / "c", even, problems, **{**plain, field: CHANGES[field]}).facts != a.facts


def test_it_goes_on_where_it_stopped_and_the_seed_matters(tmp_path: Path, even: Checkpoint, problems: Tasks, monkeypatch: Any) -> None:
    from upslope.stages import readiness

    monkeypatch.setattr(readiness, "ROWS", 40)
    whole = ran(tmp_path / "whole", even, problems)
    ctx = Context.scratch(tmp_path / "cut", 0, base=even, tasks=problems)
    (tmp_path / "cut" / "work").mkdir(exist_ok=True)
    first = tmp_path / "whole" / "work" / "chunk-00000.json"
    (tmp_path / "cut" / "work" / first.name).write_bytes(first.read_bytes())
    stage().run(ctx)
    assert ctx.facts == whole.facts
    assert ran(tmp_path / "seed", even, problems, seed=1).facts != whole.facts


def test_sizes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValidationError, match="must not be larger"):
        stage(group=8)
    with pytest.raises(ValidationError, match="has no think block"):
        stage(think="forced")
