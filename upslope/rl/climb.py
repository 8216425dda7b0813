"""The loop of reinforcement learning: draw prompts, roll out, grade, update, push weights; the same bits after any kill.

Everything that a step does is a function of (seed, step, state), where the state is the trainer's, the pass rates' and
the series of past steps. So a saved state and a step number are enough to go on.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from upslope.generate.engine import Sampling
from upslope.machine.stage import Paused
from upslope.rl.artifacts import Traces
from upslope.rl.objective import Chosen, Forward, Objective, task_score
from upslope.rl.rollout import grade, rollout
from upslope.train.batch import Batch
from upslope.train.resume import as_tensor, latest_step, save_step

if TYPE_CHECKING:
    from upslope.chat.render import Renderer
    from upslope.generate.engine import Engine
    from upslope.machine.context import Context
    from upslope.rl.buffer import Buffer
    from upslope.rl.protocol import Environment, Grader, Trace
    from upslope.tasks.task import Task
    from upslope.train.protocol import StepReport
    from upslope.train.trainer import Trainer

SHOWN = 4


@dataclass
class Climb:
    """A run of policy optimisation on verifiable or learned rewards.

    prompts x samples traces a step; updates: optimizer steps on each step's traces, which are split by group. max_new:
    most new tokens of a reply. think: every reply starts inside a think block. engine: with the trainer's weights
    already loaded, at temperature 1 over the whole vocabulary, so that its log-probs are the policy's.
    reference: gives the log-probs of a KL penalty. save_seconds: interval of saved states, without effect on the result.
    """

    trainer: Trainer
    engine: Engine
    renderer: Renderer
    buffer: Buffer
    grader: Grader
    objective: Objective
    prompts: int
    samples: int
    max_new: int
    updates: int = 1
    think: bool = False
    environment: Environment | None = None
    reference: Forward | None = None
    save_seconds: float = 20.0
    series: dict[str, list[float]] = field(default_factory=dict)

    def run(self, steps: int, ctx: Context) -> dict[str, list[float]]:
        """`steps` steps; returns one value per step of each series. Raises Paused after saving when `ctx.stopping`."""
        done = self._resume(ctx)
        saved = time.monotonic()
        while done < steps:
            if ctx.stopping:
                self._save(done, ctx)
                raise Paused
            if time.monotonic() - saved >= self.save_seconds:
                self._save(done, ctx)
                saved = time.monotonic()
            self.step(done, ctx)
            done += 1
            ctx.events.progress(done, steps, "steps")
        return self.series

    def step(self, k: int, ctx: Context) -> None:
        """Step k: its traces, its updates, its metrics; the engine then has the new weights."""
        start = time.monotonic()
        groups = self.sample(self.buffer.draw(self.prompts, ctx.rng("prompts", k)), str(k), self.samples, ctx)
        if k == 0:
            keep = [("before", t) for g in groups for t in g[:SHOWN] if t.nodes]
            Traces.write(ctx.work / "before", keep)
        if ctx.stopping:  # nothing has changed yet: the state is still that of k steps
            self._save(k, ctx)
            raise Paused
        rolled = time.monotonic()
        self.buffer.update(groups)
        chosen = self.objective.choose(groups)
        totals = {t.total.value for g in groups for t in g if t.total.valid}
        if not totals:
            ctx.events.alarm("no valid reward", step=k)
        elif len(totals) == 1:
            ctx.events.alarm("constant reward", step=k, value=min(totals))
        reports: list[StepReport] = []
        if chosen.traces:
            with ctx.events.state("compute"):
                reports = self.update(chosen)
        else:
            ctx.events.alarm("no group to learn from", step=k, left_out=dict(chosen.left_out))
        self._push(k + 1)
        self._record(k, groups, chosen, reports, ctx, rolled - start, time.monotonic() - rolled)

    def sample(self, tasks: Sequence[Task], name: str, samples: int, ctx: Context) -> list[list[Trace]]:
        """Graded groups for tasks, with the engine's weights."""
        with ctx.events.state("rollout"):
            groups = rollout(
                self.engine,
                self.renderer,
                tasks,
                samples=samples,
                sampling=Sampling(max_new=self.max_new),
                seed=lambda i, j: ctx.seed_of("rollout", name, i, j),
                environment=self.environment,
                think=self.think,
                name=name,
            )
        with ctx.events.state("grade"):
            return grade(self.grader, groups)

    def update(self, chosen: Chosen) -> list[StepReport]:
        """The optimizer steps on one step's traces."""
        on_policy = self.updates == 1
        batch = self.objective.batch(chosen, None if on_policy else self.trainer, self.reference)
        loss, lr = self.objective.loss(on_policy), self.trainer.optimizer.config.lr
        return [self.trainer.step(part, loss, lr) for part in _by_group(batch, chosen.traces, self.updates)]

    def _push(self, version: int) -> None:
        """Gives the engine the trainer's weights."""
        from upslope.model.weights import live

        self.engine.load(live(self.trainer.model), version)

    def _record(
        self,
        k: int,
        groups: Sequence[Sequence[Trace]],
        chosen: Chosen,
        reports: Sequence[StepReport],
        ctx: Context,
        rolling: float,
        training: float,
    ) -> None:
        """Metrics of a step: into the series, which is part of the state, and as an event, with speeds."""
        row = measure(groups)
        row |= {f"left_out_{why}": n / max(1, self.prompts * self.samples) for why, n in sorted(chosen.left_out.items())}
        if reports:
            row |= {"loss": _mean([r.loss for r in reports]), "grad_norm": _mean([r.grad_norm for r in reports])}
            row |= {name: _mean([r.sums[name] for r in reports]) for name in sorted(reports[0].sums)}
        for name in dict.fromkeys([*row, *self.series]):
            column = self.series.setdefault(name, [])
            column += [0.0 if name.startswith("left_out_") else float("nan")] * (k - len(column))
            column.append(row.get(name, 0.0 if name.startswith("left_out_") else float("nan")))
        sampled = row["length"] * self.prompts * self.samples
        trained = sum(r.totals.tokens for r in reports)
        speed = {"rollout_tokens_per_second": sampled / max(rolling, 1e-9), "train_tokens_per_second": trained / max(training, 1e-9)}
        ctx.events.metrics(k + 1, **row, **speed)

    def _save(self, done: int, ctx: Context) -> None:
        counts = as_tensor([v for pair in self.buffer.state().values() for v in pair])
        columns: dict[str, Tensor] = {f"series.{n}": as_tensor(v) for n, v in self.series.items()}
        with ctx.events.state("checkpoint"):
            save_step(ctx.work, done, self.trainer.state() | columns | {"buffer": counts})

    def _resume(self, ctx: Context) -> int:
        """Restores the newest whole state and pushes its weights; the number of steps done."""
        with ctx.events.state("load"):
            found = latest_step(ctx.work, ctx.events)
            if found is None:
                return 0
            done, state = found
            self.trainer.load({n: t for n, t in state.items() if not n.startswith("series.") and n != "buffer"})
            counts = state["buffer"].reshape(-1, 2).tolist()
            self.buffer.load(dict(zip(self.buffer.state(), counts, strict=True)))
            self.series = {n.removeprefix("series."): t.tolist() for n, t in state.items() if n.startswith("series.")}
            if done > self.engine.info.version:
                self._push(done)
            ctx.events.emit("note", text=f"resumed after step {done}")
            return done


def finish(climb: Climb, ctx: Context, out: Path) -> Traces:
    """The traces to show: of the first step's prompts, before the first and after the last update."""
    before = Traces.load(ctx.work / "before").read()
    ids = list(dict.fromkeys((t.group, t.task) for t in before))
    tasks = {t.id: t for cell in climb.buffer.cells.values() for t in cell}
    groups = climb.sample([tasks[task] for _, task in ids], "after", SHOWN, ctx)
    after = [("after", t) for g in groups for t in g if t.nodes]
    return Traces.write(out, [*(("before", t) for t in before), *after])


def measure(groups: Sequence[Sequence[Trace]]) -> dict[str, float]:
    """On-policy numbers of a step's traces.

    reward, task: means over valid traces. length: sampled tokens a trace. entropy: nats a token, estimated without bias
    as the mean of -log p of what was sampled. constant: share of groups whose task scores are all equal. truncated,
    invalid: shares of traces. thinking: share of replies with reasoning. score_NAME: mean of each other score.
    """
    traces = [t for g in groups for t in g if t.nodes and t.nodes[-1].sampled is not None]
    valid = [t for t in traces if t.total.valid]
    total = max(1, sum(len(g) for g in groups))
    logprobs = [n.sampled.logprobs for t in traces for n in t.nodes if n.sampled is not None]
    equal = [len({task_score(t).value for t in g if t.total.valid}) < 2 for g in groups]
    row = {
        "reward": _mean([t.total.value for t in valid]),
        "task": _mean([task_score(t).value for t in valid]),
        "length": _mean([float(t.length) for t in traces]),
        "entropy": -_mean(np.concatenate(logprobs) if logprobs else ()),
        "constant": _mean([float(e) for e in equal]),
        "truncated": sum(t.done.truncated for t in traces) / total,
        "invalid": 1 - len(valid) / total,
        "thinking": _mean([float(bool(t.reply.reasoning)) for t in traces]),
    }
    names = dict.fromkeys(n for t in valid for n in t.scores if n not in ("reward", "task"))
    return row | {f"score_{n}": _mean([t.scores[n].value for t in valid if n in t.scores]) for n in names}


def _by_group(batch: Batch, traces: Sequence[Trace], parts: int) -> list[Batch]:
    """The batch in at most `parts` parts of whole groups, in order, of nearly equal numbers of groups."""
    if parts == 1:
        return [batch]
    number = {g: i for i, g in enumerate(dict.fromkeys(t.group for t in traces))}
    parts = min(parts, len(number))
    of = np.array([number[t.group] * parts // len(number) for t in traces])
    return [batch.select(torch.from_numpy(np.flatnonzero(of == p))) for p in range(parts)]


def _mean(values: Sequence[float] | np.ndarray) -> float:
    return float(np.mean(values)) if len(values) else float("nan")


def facts(series: Mapping[str, Sequence[float]], window: int = 5) -> dict[str, Any]:
    """Numbers for the manifest: the first and last means of each series, and the course of the main ones."""
    ends = {n: [round(_mean(v[:window]), 4), round(_mean(v[-window:]), 4)] for n, v in sorted(series.items())}
    course = {n: [round(x, 4) for x in series[n]] for n in ("reward", "task", "length", "entropy")}
    return json.loads(json.dumps({"ends": ends, "course": course}).replace("NaN", "null"))  # type: ignore[no-any-return]
