"""The stages rl, sample, keep and contrast: they learn, they resume to the same bits, every field bites."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.rl.support import trace
from upslope.chat.artifacts import Chats, Pairs
from upslope.chat.messages import Message
from upslope.config import Input, UsageError
from upslope.machine.context import Context
from upslope.machine.events import Events, read
from upslope.machine.files import digest_path
from upslope.machine.stage import Paused
from upslope.model.checkpoint import Checkpoint
from upslope.optim.config import AdamW
from upslope.rl import climb as climbing
from upslope.rl.artifacts import Traces
from upslope.rl.buffer import Curriculum
from upslope.rl.kl import KL
from upslope.rl.objective import Objective
from upslope.rl.protocol import Done
from upslope.rl.rewards import Exact, Format, Part, Random, Weighted
from upslope.rl.select import contrasts, keepers
from upslope.stages.contrast import Contrast
from upslope.stages.keep import Keep
from upslope.stages.rl import Rl
from upslope.stages.sample import Sample
from upslope.tasks.artifacts import Tasks
from upslope.train.init import Load

SHAPED = Weighted(parts=(Part(reward=Exact()), Part(reward=Format(), weight=0.2)))
QUICK: dict[str, Any] = {
    "steps": 3,
    "prompts": 6,
    "samples": 8,
    "max_new": 5,
    "optim": AdamW(lr=3e-3, weight_decay=0.0),
    "numerics": "fp32",
    "reward": SHAPED,
    "objective": Objective(drop_constant=False),
}


def stage(**fields: Any) -> Rl:
    return Rl(init=Load(checkpoint=Input(stage="start")), tasks=Input(stage="tasks"), **{**QUICK, **fields})


def context(folder: Path, checkpoint: Checkpoint, tasks: Tasks, seed: int = 0) -> Context:
    return Context.scratch(folder, seed=seed, start=checkpoint, tasks=tasks)


def test_it_learns_to_say_what_is_asked_for(tmp_path: Path, checkpoint: Checkpoint, tasks: Tasks) -> None:
    ctx = context(tmp_path, checkpoint, tasks)
    ctx.events = Events(tmp_path / "events.jsonl")
    policy = stage(steps=20, prompts=6, samples=16, reward=Exact(), objective=Objective()).run(ctx)
    first, last = ctx.facts["ends"]["reward"]
    assert last > first + 0.25, (first, last)
    assert ctx.headline.startswith("reward ")
    steps = [e["values"] for e in read(tmp_path) if e["kind"] == "metric"]
    assert len(steps) == 20
    assert {"reward", "entropy", "length", "clip_fraction", "constant", "truncated", "loss", "rollout_tokens_per_second"} <= set(steps[0])
    assert steps[0]["ratio"] == 1.0
    assert abs(steps[0]["mismatch"]) < 1e-6  # engine and trainer agree, so that one update a step is on policy
    shown = Traces.load(policy.path / "traces")
    assert len(shown.read("before")) == len(shown.read("after")) == 6 * climbing.SHOWN
    changed = shown.samples("changed", 3)
    assert len(changed) == 3
    assert all("before" in str(e) and "after" in str(e) for e in changed)
    assert policy.tokenizer().vocab_size == checkpoint.tokenizer().vocab_size


class Killed(Exception):
    pass


@pytest.mark.parametrize("fields", [{}, {"updates": 2, "objective": Objective(drop_constant=False, kl=KL(coefficient=0.1))}])
def test_killed_anywhere_it_ends_with_the_same_bits(
    tmp_path: Path, checkpoint: Checkpoint, tasks: Tasks, monkeypatch: pytest.MonkeyPatch, fields: dict[str, Any]
) -> None:
    whole = context(tmp_path / "whole", checkpoint, tasks)
    stage(**fields).run(whole)
    ctx = context(tmp_path / "killed", checkpoint, tasks)
    real, calls = climbing.Climb.step, []

    def fragile(self: climbing.Climb, k: int, c: Context) -> None:
        real(self, k, c)
        calls.append(k)
        if len(calls) in (1, 3):
            raise Killed

    monkeypatch.setattr(climbing.Climb, "step", fragile)
    for _ in range(2):
        with pytest.raises(Killed):
            stage(save_seconds=0.0, **fields).run(ctx)
    ctx.stopping = True
    with pytest.raises(Paused):
        stage(save_seconds=0.0, **fields).run(ctx)
    ctx.stopping = False
    stopped: list[int] = []

    def stop(*a: Any) -> Any:
        ctx.stopping = not stopped
        stopped.append(1)
        return real_grade(*a)

    real_grade = climbing.grade
    monkeypatch.setattr(climbing, "grade", stop)
    with pytest.raises(Paused):  # asked to stop between sampling and learning
        stage(save_seconds=0.0, **fields).run(ctx)
    ctx.stopping = False
    monkeypatch.setattr(climbing, "grade", real_grade)
    stage(save_seconds=0.0, **fields).run(ctx)
    assert len(calls) >= 4
    assert digest_path(ctx.out) == digest_path(whole.out)
    assert ctx.facts == whole.facts


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory, checkpoint: Checkpoint, tasks: Tasks) -> str:
    policy = stage().run(context(tmp_path_factory.mktemp("plain"), checkpoint, tasks))
    return digest_path(policy.weights / "model.safetensors")


@pytest.mark.parametrize(
    "fields",
    [
        {"reward": Random()},
        {"optim": AdamW(lr=1e-3, weight_decay=0.0)},
        {"steps": 2},
        {"prompts": 3},
        {"samples": 7},
        {"updates": 2},
        {"max_new": 2},
        {"think": "forced"},
        {"families": ("say",)},
        {"clip": 0.01},
        {"curriculum": Curriculum(uniform=True)},
        {"objective": Objective(kl=KL(coefficient=1.0), drop_constant=False)},
        {"numerics": "bf16"},
    ],
    ids=lambda f: next(iter(f)),
)
def test_every_field_changes_the_result(tmp_path: Path, checkpoint: Checkpoint, tasks: Tasks, plain: str, fields: dict[str, Any]) -> None:
    assert digest_path(stage(**fields).run(context(tmp_path, checkpoint, tasks)).weights / "model.safetensors") != plain


def test_the_seed_is_the_only_chance(tmp_path: Path, checkpoint: Checkpoint, tasks: Tasks) -> None:
    runs = [digest_path(stage(steps=1).run(context(tmp_path / str(i), checkpoint, tasks, seed)).path) for i, seed in enumerate((0, 0, 1))]
    assert runs[0] == runs[1] != runs[2]


def test_a_constant_reward_raises_an_alarm_and_teaches_nothing(tmp_path: Path, checkpoint: Checkpoint, tasks: Tasks) -> None:
    (tmp_path / "same.py").write_text("def score(task, answer):\n    return 1.0")
    ctx = context(tmp_path / "run", checkpoint, tasks)
    ctx.events = Events(tmp_path / "log" / "events.jsonl")
    policy = stage(reward={"kind": f"{tmp_path}/same.py:score"}, objective=Objective(), steps=2).run(ctx)
    alarms = [e["what"] for e in read(tmp_path / "log") if e["kind"] == "alarm"]
    assert alarms == ["constant reward", "no group to learn from"] * 2
    assert digest_path(policy.weights / "model.safetensors") == digest_path(checkpoint.weights / "model.safetensors")
    assert ctx.facts["ends"]["left_out_constant"] == [1.0, 1.0]


def test_a_reward_that_fails_is_not_a_zero(tmp_path: Path, checkpoint: Checkpoint, tasks: Tasks) -> None:
    (tmp_path / "bad.py").write_text("def score(task, answer):\n    return task['no such field']")
    ctx = context(tmp_path / "run", checkpoint, tasks)
    ctx.events = Events(tmp_path / "log" / "events.jsonl")
    stage(reward={"kind": f"{tmp_path}/bad.py:score"}, steps=1).run(ctx)
    assert "no valid reward" in [e["what"] for e in read(tmp_path / "log") if e["kind"] == "alarm"]
    assert ctx.facts["ends"]["invalid"] == [1.0, 1.0]
    assert ctx.facts["ends"]["reward"] == [None, None]


def test_unknown_families_are_refused(tmp_path: Path, checkpoint: Checkpoint, tasks: Tasks) -> None:
    with pytest.raises(UsageError, match="there are: add, say"):
        stage(families=("sya",)).run(context(tmp_path, checkpoint, tasks))


# ── sampling and selection ──────────────────────────────────────────────────────────────────────────────────────────


def sampler(**fields: Any) -> Sample:
    base: dict[str, Any] = {"prompts": 0, "samples": 24, "max_new": 4, "numerics": "fp32"}
    return Sample(checkpoint=Input(stage="start"), tasks=Input(stage="tasks"), **{**base, **fields})


def test_own_answers_become_demonstrations_and_preferences(
    tmp_path: Path, checkpoint: Checkpoint, tasks: Tasks, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("upslope.stages.sample.ROWS", 3 * 24)
    ctx = context(tmp_path / "whole", checkpoint, tasks)
    traces = sampler().run(ctx)
    assert len(traces.read()) == 7 * 24  # the held-out task is never asked
    stopped = context(tmp_path / "stopped", checkpoint, tasks)
    done: list[int] = []

    def stop(now: float, total: float, unit: str = "", **extra: Any) -> None:
        done.append(1)
        stopped.stopping = len(done) == 1

    monkeypatch.setattr(stopped.events, "progress", stop)
    with pytest.raises(Paused):
        sampler().run(stopped)
    stopped.stopping = False
    assert digest_path(sampler().run(stopped).path) == digest_path(traces.path)

    chats = Keep(traces=(Input(stage="samples"),), per_prompt=1).run(Context.scratch(tmp_path / "keep", samples=traces))
    truths = {t.id: t.truth for t in tasks.read()}
    assert len(chats) >= 3
    for chat in chats:
        parents, truth = chat.meta["parents"], chat.meta["truth"]
        assert isinstance(parents, list)
        assert isinstance(truth, dict)
        assert truth == truths[parents[0]]
        assert chat.messages[-1].content == truth["answer"]
        assert [m.role for m in chat.messages] == ["user", "assistant"]
    pairs = Contrast(traces=(Input(stage="samples"),), per_prompt=2).run(Context.scratch(tmp_path / "pairs", samples=traces))
    assert len(pairs) >= 3
    assert all(p.chosen.content != p.rejected.content for p in pairs)
    assert isinstance(chats, Chats)
    assert isinstance(pairs, Pairs)


def test_sampling_fields_bite(tmp_path: Path, checkpoint: Checkpoint, tasks: Tasks) -> None:
    seen = set()
    variants: list[dict[str, Any]] = [
        {},
        {"prompts": 3},
        {"samples": 5},
        {"max_new": 2},
        {"temperature": 0.5},
        {"top_p": 0.5},
        {"think": "forced"},
        {"families": ("say",)},
        {"reward": Format()},
    ]
    for i, fields in enumerate(variants):
        seen.add(digest_path(sampler(**{"samples": 4, **fields}).run(context(tmp_path / str(i), checkpoint, tasks)).path))
    assert len(seen) == len(variants)


def answer(value: float, text: str, task: str, n: int, **more: Any) -> Any:
    facts = {"family": "add", "level": 1.0, "truth": {"answer": task}}
    return trace(value, group=task, task=task, id=f"{task}.{n}", reply=Message("assistant", text), facts=facts, **more)


def test_keepers_are_right_whole_different_and_capped() -> None:
    traces = [
        answer(1.0, "2", "a", 0),
        answer(1.0, "2", "a", 1),
        answer(1.0, "two", "a", 2),
        answer(1.0, "ii", "a", 3),
        answer(0.0, "3", "a", 4),
        answer(1.0, "5", "b", 0, done=Done.LENGTH),
        answer(0.5, "5", "b", 1),
    ]
    assert [c.id for c in keepers(traces, 2)] == ["a.0", "a.2"]
    assert [c.id for c in keepers(traces, 2, at_least=0.5)] == ["a.0", "a.2", "b.1"]


def test_no_problem_is_in_both_splits_of_the_pairs() -> None:
    traces = [answer(v, f"{v}{i}", str(task), i) for task in range(200) for i, v in enumerate((1.0, 0.0, 1.0, 0.0))]
    pairs = contrasts(traces, 2, heldout=0.25)
    assert len(pairs) == 400
    splits = {s: {p.id.split(".")[0] for p in pairs if p.split == s} for s in ("train", "heldout")}
    assert not splits["train"] & splits["heldout"]
    assert 30 <= len(splits["heldout"]) <= 70
    assert all(p.chosen.content.startswith("1") and p.rejected.content.startswith("0") for p in pairs)
    assert {p.split for p in contrasts(traces, 1, heldout=0.0)} == {"train"}


def test_nothing_to_keep_is_said(tmp_path: Path) -> None:
    only_wrong = Traces.write(tmp_path / "t", [("sample", answer(0.0, "3", "a", 0))])
    with pytest.raises(UsageError, match="nothing to keep"):
        Keep(traces=(Input(stage="s"),)).run(Context.scratch(tmp_path / "k", s=only_wrong))
    with pytest.raises(UsageError, match="no pair can be made"):
        Contrast(traces=(Input(stage="s"),)).run(Context.scratch(tmp_path / "c", s=only_wrong))
