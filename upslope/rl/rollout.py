"""The rollout loop: environments give messages, the engine gives tokens, and this loop alone joins them.

Sampled ids go into the trace as the engine returned them; text is made of them for environments and rewards, and never
turned back into ids.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from upslope.chat.messages import Message, Tokens
from upslope.generate.engine import Completion, Engine, Request, Sampling, Stop, generate
from upslope.rl.environments import SingleTurn
from upslope.rl.protocol import Done, Environment, Episode, Grader, Node, Score, Trace, Turn

if TYPE_CHECKING:
    from upslope.chat.render import Renderer
    from upslope.config import Json
    from upslope.tasks.task import Task

CUT = {Stop.LENGTH: Done.LENGTH, Stop.CONTEXT: Done.CONTEXT, Stop.ABORTED: Done.ERROR}


def rollout(
    engine: Engine,
    renderer: Renderer,
    tasks: Sequence[Task],
    *,
    samples: int,
    sampling: Sampling,
    seed: Callable[[int, int], int],
    environment: Environment | None = None,
    think: bool = False,
    name: str = "",
) -> list[list[Trace]]:
    """`samples` traces for each task, in order: one group per task.

    sampling.max_new bounds each turn. seed(i, j): of sample j of task i; it alone decides the noise. think: opens a think
    block before every reply, so that the model must think; the opening is part of the prompt and not learnt. name:
    prefix of the ids `name.i.j`; give each step its own. A reply that was cut off ends the trace as truncated, one that
    the engine lost ends it as an error. An environment that raises ends its trace as an error as well.
    """
    environment = (environment or SingleTurn()).check()
    runs = [
        _Run(f"{name}.{i}.{j}", f"{name}.{i}", task, environment.episode(), seed(i, j))
        for i, task in enumerate(tasks)
        for j in range(samples)
    ]
    thought = Tokens()
    if think:
        example = (Message("user", ""),)
        thought = renderer.open(example, think=True)[slice(len(renderer.open(example)), None)]
    opened: dict[str, tuple[tuple[Message, ...], Tokens]] = {}
    for run in runs:
        run.open(renderer, thought, opened)
    while active := [run for run in runs if run.done is None]:
        requests = [Request(r.id, r.tokens.ids.tolist(), sampling, r.next_seed()) for r in active]
        for run, completion in zip(active, generate(engine, requests), strict=True):
            run.take(completion, renderer, thought)
    for run in runs:
        run.episode.close()
    traces = [run.trace() for run in runs]
    return [traces[i * samples : (i + 1) * samples] for i in range(len(tasks))]


def grade(grader: Grader, groups: Sequence[Sequence[Trace]]) -> list[list[Trace]]:
    """The groups with their scores. Traces that ended as errors are kept out of the grader's sight and stay invalid."""
    sound = [[t for t in group if t.done is not Done.ERROR] for group in groups]
    said = iter([scores for group in grader.score_all(sound) for scores in group])
    return [[t if t.done is Done.ERROR else t._replace(scores={**t.scores, **next(said)}) for t in group] for group in groups]


class _Run:
    """One trace on its way."""

    def __init__(self, id: str, group: str, task: Task, episode: Episode, seed: int) -> None:
        self.id, self.group, self.task, self.episode, self.seed = id, group, task, episode, seed
        self.nodes: list[Node] = []
        self.tokens = Tokens()
        self.facts: Json = None
        self.done: Done | None = None
        self.error = ""
        self.turns = 0

    def next_seed(self) -> int:
        """The seed of the next turn; the first turn's is the trace's."""
        return (self.seed + self.turns * 0x9E3779B97F4A7C15) & 0x7FFFFFFFFFFFFFFF

    def open(self, renderer: Renderer, thought: Tokens, opened: dict[str, tuple[tuple[Message, ...], Tokens]]) -> None:
        turn = self._guarded(lambda: self.episode.reset(self.task, self.seed))
        if turn is None:
            return
        self.facts = turn.facts
        before = opened.get(self.group)  # siblings share their prompt, so it is rendered once
        if before is None or before[0] != turn.messages:
            before = opened[self.group] = (turn.messages, renderer.open(turn.messages) + thought)
        self._append(turn.messages, before[1])
        self.done = turn.done

    def take(self, completion: Completion, renderer: Renderer, thought: Tokens) -> None:
        """The model's reply, and the environment's answer to it."""
        self.turns += 1
        message = renderer.parse([*thought.ids.tolist(), *completion.ids.tolist()])
        written = Tokens.of(completion.ids, "assistant", trainable=True)
        self.nodes.append(Node(len(self.nodes) - 1, "turn", message, written, completion))
        self.tokens = self.tokens + written
        self.done = CUT.get(completion.stop)
        if self.done is not None:
            return
        turn = self._guarded(lambda: self.episode.step(message))
        if turn is None:
            return
        if turn.facts is not None:
            self.facts = turn.facts
        self.done = turn.done
        if self.done is None:
            longer = renderer.extend(self.tokens, turn.messages) + thought
            self._append(turn.messages, longer[slice(len(self.tokens), None)])

    def trace(self) -> Trace:
        """The finished trace; an error says in its scores what happened."""
        scores = {"error": Score(0.0, False, self.error)} if self.error else {}
        assert self.done is not None
        return Trace(self.id, self.group, self.task.id, tuple(self.nodes), self.done, self.facts, scores)

    def _append(self, messages: Sequence[Message], tokens: Tokens) -> None:
        """Nodes for messages that others wrote; their ids stand at the last one."""
        for i, message in enumerate(messages):
            last = i == len(messages) - 1
            self.nodes.append(Node(len(self.nodes) - 1, "turn", message, tokens if last else Tokens()))
        self.tokens = self.tokens + tokens

    def _guarded(self, call: Callable[[], Turn]) -> Turn | None:
        """The environment's turn; None, and an error, where it raised: that says nothing about the model."""
        try:
            return call()
        except Exception as e:
            self.done, self.error = Done.ERROR, f"{type(e).__name__}: {e}"
            return None
