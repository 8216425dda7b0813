"""Rollouts: whose tokens are whose, several turns, errors that are not the model's, determinism; traces on disk."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest

from tests.rl.support import trace
from upslope.chat.messages import Message
from upslope.chat.render import ChatML
from upslope.config import UsageError
from upslope.generate.engine import Sampling
from upslope.generate.local import LocalEngine
from upslope.model.checkpoint import Checkpoint
from upslope.rl.artifacts import Traces
from upslope.rl.objective import trace_columns
from upslope.rl.protocol import TOTAL, Done, Environment, Episode, Score, Trace, Turn
from upslope.rl.rewards import Exact
from upslope.rl.rollout import grade, rollout
from upslope.tasks.task import Task
from upslope.tokens.tokenizer import Tokenizer

SIX = Sampling(max_new=6)


class Twice(Environment):
    """Asks again once; breaks down for one task."""

    kind: ClassVar[str] = "twice"

    def episode(self) -> Episode:
        return _Twice()


class _Twice:
    def __init__(self) -> None:
        self.heard: list[Message] = []

    def reset(self, task: Task, seed: int) -> Turn:
        self.id = task.id
        return Turn((Message("system", "rule"), Message("user", "first")), facts={"family": task.family, "level": task.level})

    def step(self, message: Message) -> Turn:
        if self.id == "t1":
            raise OSError("the tool is down")
        self.heard.append(message)
        if len(self.heard) == 2:
            return Turn((), Done.ANSWER, {"heard": [m.content for m in self.heard]})
        return Turn((Message("tool", "result"), Message("user", "second")))

    def close(self) -> None:
        self.heard.clear()


def roll(
    checkpoint: Checkpoint,
    tokenizer: Tokenizer,
    problems: Sequence[Task],
    samples: int = 4,
    environment: Environment | None = None,
    think: bool = False,
    sampling: Sampling = SIX,
) -> list[list[Trace]]:
    engine = LocalEngine(checkpoint.model(), tokenizer)
    return rollout(
        engine,
        ChatML(tokenizer),
        problems,
        samples=samples,
        sampling=sampling,
        seed=lambda i, j: 100 * i + j,
        environment=environment,
        think=think,
        name="7",
    )


def test_the_tokens_of_a_trace_are_the_prompt_and_what_was_sampled(
    checkpoint: Checkpoint, tokenizer: Tokenizer, problems: Sequence[Task]
) -> None:
    groups = roll(checkpoint, tokenizer, problems[:2])
    assert [[t.id for t in g] for g in groups] == [[f"7.{i}.{j}" for j in range(4)] for i in range(2)]
    for g, task in zip(groups, problems[:2], strict=True):
        for t in g:
            ids, action, logprobs = trace_columns(t)
            prompt = ChatML(tokenizer).open(task.messages).ids
            assert t.task == task.id
            assert np.array_equal(ids[action == 0], prompt)
            sampled = t.nodes[-1].sampled
            assert sampled is not None
            assert np.array_equal(ids[action == 1], sampled.ids)
            assert np.array_equal(logprobs[action == 1], sampled.logprobs)
            assert t.done == (Done.ANSWER if sampled.ids[-1] in (tokenizer.im_end, tokenizer.eos) else Done.LENGTH)
            assert t.reply.content == ChatML(tokenizer).parse(sampled.ids.tolist()).content


def test_a_sample_depends_on_its_seed_alone(checkpoint: Checkpoint, tokenizer: Tokenizer, problems: Sequence[Task]) -> None:
    many, few = roll(checkpoint, tokenizer, problems[:3]), roll(checkpoint, tokenizer, problems[:3], samples=2)
    for a, b in zip(many, few, strict=True):
        for x, y in zip(a, b, strict=False):
            assert np.array_equal(trace_columns(x)[0], trace_columns(y)[0])


def test_forced_thinking_opens_the_block_in_the_prompt(checkpoint: Checkpoint, tokenizer: Tokenizer, problems: Sequence[Task]) -> None:
    t = roll(checkpoint, tokenizer, problems[:1], think=True)[0][0]
    ids, action, _ = trace_columns(t)
    prompt = ids[action == 0].tolist()
    assert prompt == ChatML(tokenizer).open(problems[0].messages, think=True).ids.tolist()
    assert tokenizer.think in prompt
    assert t.reply.content == ""  # a block that never closes holds no answer


def test_several_turns_are_appended_and_others_words_are_never_learnt(
    checkpoint: Checkpoint, tokenizer: Tokenizer, problems: Sequence[Task]
) -> None:
    t = next(t for t in roll(checkpoint, tokenizer, problems[:1], 16, Twice())[0] if t.done == Done.ANSWER)
    roles = [n.message.role for n in t.nodes]
    assert roles == ["system", "user", "assistant", "tool", "user", "assistant"]
    assert [n.parent for n in t.nodes] == [-1, 0, 1, 2, 3, 4]
    ids, action, _ = trace_columns(t)
    replies = [n.message for n in t.nodes if n.sampled is not None]
    text = tokenizer.decode(ids.tolist())
    assert text.count("<|im_start|>assistant\n") == 2
    assert text.index("rule") < text.index("first") < text.index("result") < text.index("second")
    assert t.facts == {"heard": [m.content for m in replies]}
    assert action.sum() == t.length
    assert [m.content for m in t.prompt] == ["rule", "first"]


def test_a_broken_environment_says_nothing_about_the_model(checkpoint: Checkpoint, tokenizer: Tokenizer, problems: Sequence[Task]) -> None:
    groups = grade(Exact(), roll(checkpoint, tokenizer, problems[:2], 16, Twice()))
    broken = [t for t in groups[1] if t.done == Done.ERROR]
    assert broken
    assert all(not t.total.valid and "the tool is down" in t.scores["error"].evidence for t in broken)
    assert all(t.done != Done.ERROR for t in groups[0])


def test_a_prompt_that_fills_the_context_is_truncated_not_wrong(
    checkpoint: Checkpoint, tokenizer: Tokenizer, problems: Sequence[Task]
) -> None:
    long = problems[0]._replace(messages=({"role": "user", "content": "7 " * 200},))
    group = roll(checkpoint, tokenizer, [long])[0]
    assert all(t.done == Done.CONTEXT and t.length == 0 for t in group)


def test_traces_come_back_from_disk_as_they_were(
    tmp_path: Path, checkpoint: Checkpoint, tokenizer: Tokenizer, problems: Sequence[Task]
) -> None:
    traces = [t for g in grade(Exact(), roll(checkpoint, tokenizer, problems[:2])) for t in g]
    traces += list(roll(checkpoint, tokenizer, problems[:1], 2, Twice())[0])[:1]
    traces[-1] = traces[-1]._replace(id="other")
    got = Traces.write(tmp_path / "a", [("before", t) for t in traces])
    again = Traces.write(tmp_path / "b", [("before", t) for t in got.read()])
    assert (tmp_path / "a" / "traces.parquet").read_bytes() == (tmp_path / "b" / "traces.parquet").read_bytes()
    for a, b in zip(traces, again.read(), strict=True):
        assert (a.id, a.group, a.task, a.done, a.facts, a.scores) == (b.id, b.group, b.task, b.done, b.facts, b.scores)
        assert [n.message for n in a.nodes] == [n.message for n in b.nodes]
        for x, y in zip(trace_columns(a), trace_columns(b), strict=True):
            assert np.array_equal(x, y)
    assert Traces.load(tmp_path / "a").read("after") == []


def test_samples_for_people(tmp_path: Path) -> None:
    before = [trace(v, group=t, id=f"b{t}{i}") for t, values in (("x", (0.0, 0.2)), ("y", (0.5, 0.5))) for i, v in enumerate(values)]
    after = [trace(v, group=t, id=f"a{t}{i}") for t, values in (("x", (1.0, 1.0)), ("y", (0.5, 0.6))) for i, v in enumerate(values)]
    after.append(trace(Score(5.0, False), group="z", id="invalid"))
    traces = Traces.write(tmp_path, [*(("before", t) for t in before), *(("after", t) for t in after)])
    assert [[t.id for t in e.traces] for e in traces.samples("best", 2)] == [["ax0"], ["ay1"]]
    assert [[t.id for t in e.traces] for e in traces.samples("worst", 1)] == [["ay0"]]
    (example,) = traces.samples("changed", 1)
    assert [t.id[0] + t.task[-1] for t in example.traces] == ["bx", "ax"]
    assert str(example).splitlines() == [
        "task · task-x",
        "  user: q",
        "  before: reward 0, 2 tokens, ended by answer",
        "    a",
        "  after: reward 1, 2 tokens, ended by answer",
        "    a",
    ]
    one = Traces.write(tmp_path / "one", [("sample", before[0])])
    with pytest.raises(UsageError, match="one phase"):
        one.samples("changed")


def test_traces_refuse_doubles_and_emptiness(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="twice"):
        Traces.write(tmp_path, [("a", trace(1.0, id="x")), ("a", trace(1.0, id="x"))])
    with pytest.raises(UsageError, match="nothing was said"):
        Traces.write(tmp_path, [("a", trace(1.0)._replace(nodes=()))])
    assert TOTAL in trace(1.0).scores
