"""Answers of a model to tasks with a known truth, graded by exact verifiers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from upslope.config import canonical_json
from upslope.machine.rng import seed_of

if TYPE_CHECKING:
    from upslope.chat.messages import Message
    from upslope.chat.render import ChatML
    from upslope.generate.engine import Engine, Sampling
    from upslope.tasks.task import Task

PROMPTS_AT_ONCE = 128


class Answer(NamedTuple):
    """One graded answer. message: as parsed. tokens: sampled. ended: whether the model ended its turn itself. score: of the verifier."""

    task: Task
    sample: int
    message: Message
    tokens: int
    ended: bool
    score: float


def select(tasks: Sequence[Task], limit: int) -> list[Task]:
    """At most `limit` tasks with distinct problems, spread evenly over (family, level).

    Two wordings of one problem count once (the first by id). Within a cell the order is that of the ids.
    """
    cells: dict[tuple[str, float], list[Task]] = {}
    seen: set[bytes] = set()
    for task in sorted(tasks, key=lambda t: t.id):
        problem = canonical_json([task.family, task.truth])
        if problem not in seen:
            seen.add(problem)
            cells.setdefault((task.family, task.level), []).append(task)
    ranked = sorted((rank, cell, task) for cell, members in cells.items() for rank, task in enumerate(members))
    return [task for _, _, task in ranked[:limit]]


def with_system(messages: Sequence[Mapping[str, Any]], *systems: str) -> list[dict[str, Any]]:
    """The messages under the given system prompts: one system message, the given ones first, then the conversation's own."""
    own = [str(m["content"]) for m in messages if m["role"] == "system"]
    text = "\n".join(s for s in (*systems, *own) if s)
    rest = [dict(m) for m in messages if m["role"] != "system"]
    return [{"role": "system", "content": text}, *rest] if text else rest


def answers(
    engine: Engine,
    renderer: ChatML,
    tasks: Sequence[Task],
    sampling: Sampling,
    *,
    system: str = "",
    forced: bool = False,
    samples: int = 1,
    seed: int = 0,
    check: Callable[[int], None] = lambda done: None,
) -> Iterator[Answer]:
    """Samples and grades `samples` answers to each task, in order.

    system: put before every conversation. forced: the answer is made to begin with "<think>" and a line break, which is
    then part of it. seed: with the task's id and the number of the sample it determines the sampling noise.
    check: called with the number of finished tasks between batches; may raise.
    """
    from upslope.chat.messages import messages_of
    from upslope.generate.engine import Request, Stop, generate
    from upslope.tasks.verify import final_answer, verify

    tokenizer = renderer.tokenizer
    start = [tokenizer.think, *tokenizer.encode("\n")] if forced else []
    for begin in range(0, len(tasks), PROMPTS_AT_ONCE):
        check(begin)
        part = tasks[begin : begin + PROMPTS_AT_ONCE]
        requests = []
        for task in part:
            ids = renderer.open(messages_of(with_system(task.messages, system)), think=forced).ids.tolist()
            requests += [Request(f"{task.id}#{s}", ids, sampling, seed_of(seed, "answer", task.id, s)) for s in range(samples)]
        for j, completion in enumerate(generate(engine, requests)):
            task, sample = part[j // samples], j % samples
            message = renderer.parse([*start, *completion.ids.tolist()])
            score = verify(task.family, task.truth, final_answer(message.content))
            yield Answer(task, sample, message, len(completion.ids), completion.stop in (Stop.EOS, Stop.TOKEN), float(score))


def group(task: Task) -> str:
    """The item name of a task in a table: family/level/id, so that results can be shown by family and level."""
    return f"{task.family}/{task.level:g}/{task.id}"
