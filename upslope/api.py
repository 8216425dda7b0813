"""The Python face: a handful of functions over the same store as the command line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from upslope.config import UsageError
from upslope.machine import run as machine
from upslope.machine import stopping
from upslope.machine.graph import resolve
from upslope.machine.record import RunRecord
from upslope.machine.stage import Recipe
from upslope.machine.store import Store
from upslope.recipes.load import load as load_recipe
from upslope.recipes.overrides import Draft, apply

DEFAULT_STORE = "store"


def recipe(name: str, sets: Sequence[str] = (), **params: Any) -> Recipe:
    """A recipe by preset name or TOML path. sets: assignments as on the command line; params: the preset's own."""
    return load_recipe(name, sets, **params).recipe


def change(recipe: Recipe, changes: Mapping[str, Any]) -> Recipe:
    """The recipe with addressed values changed: `change(r, {"pretrain.optim.lr": 0.01})`."""
    return apply(Draft(recipe), list(changes.items())).recipe


class Plan:
    """What would happen; prints as a table. steps: one per stage, in order."""

    def __init__(self, steps: list[machine.Step]) -> None:
        self.steps = steps

    def __repr__(self) -> str:
        rows = [f"{s.node.name:<20} {s.node.kind:<14} {s.state:<7} {s.cost.seconds:8.1f} s" for s in self.steps]
        return "\n".join(rows)


def plan(recipe: Recipe, store: str | Path = DEFAULT_STORE) -> Plan:
    """What would be built, continued and reused, and the price."""
    place = Store(store)
    return Plan(machine.plan(resolve(recipe, machine.source_digests(place)), place))


def rehearse(
    what: str | Recipe, ranks: int, mesh: str | None = None, machine: str | None = None, stage: str | None = None, **job: Any
) -> Any:
    """A stage of a recipe, or a lab's preset at its real size (by name), on ranks that are not there; nothing runs.

    mesh: as in "dp 2, tp 8" (None: the fastest legal one). machine: "h100x8" or a TOML or JSON file. job: changes to what is assumed, e.g.
    recompute="full". The answer prints itself; `.rehearsal` has memory, collectives and time as numbers, `.values()` plain ones.
    """
    from upslope.cli.rehearse import answer, is_lab

    subject = what if isinstance(what, Recipe) or is_lab(what) else recipe(what)
    return answer(subject, ranks, mesh, machine, stage, job)


class Run:
    """A run in the store. Reads it anew at every access; in a notebook it shows itself."""

    def __init__(self, store: Store, name: str) -> None:
        self.store, self.name = store, name

    @property
    def record(self) -> RunRecord:
        """Stages, manifests, events."""
        return self.store.record(self.name)

    def facts(self, stage: str) -> dict[str, Any]:
        """The numbers that a stage left in its manifest; UsageError if there is no such stage or it is not done."""
        found = self.record.stage(stage)
        if found is None or found.manifest is None:
            known = ", ".join(s.name for s in self.record.stages if s.manifest)
            raise UsageError(f"{self.name} has no finished stage {stage!r}; finished: {known or 'none'}")
        facts: dict[str, Any] = found.manifest["facts"]
        return facts

    def metrics(self, path: str) -> tuple[np.ndarray, np.ndarray]:
        """The curve of "STAGE/METRIC": steps (n,) int64 and values (n,) float64; a step that was redone after a kill counts once."""
        stage, _, metric = path.partition("/")
        found = self.record.stage(stage)
        rows = [r for r in found.events if r["kind"] == "metric"] if found else []
        curve = {int(r["step"]): float(r["values"][metric]) for r in rows if metric in r["values"]}
        if not curve:
            known = sorted({m for r in rows for m in r["values"]})
            raise UsageError(f"{self.name}: no metric {path!r}" + (f"; {stage} has {', '.join(known)}" if known else ""))
        steps = sorted(curve)
        return np.array(steps, dtype=np.int64), np.array([curve[s] for s in steps])

    def artifact(self, stage: str) -> Any:
        """The artifact of a stage, verified."""
        found = self.record.stage(stage)
        if found is None:
            raise UsageError(f"{self.name} has no stage {stage!r}")
        return self.store.open(found.kind, found.fp)

    def report(self, path: str | Path) -> Path:
        """Writes the report as one HTML file."""
        from upslope.report.html import write

        write(self.record, Path(path))
        return Path(path)

    def __repr__(self) -> str:
        from upslope.report.text import summary

        return summary(self.record)

    def _repr_html_(self) -> str:
        from upslope.report.notebook import repr_html

        return repr_html(self.record)


def run(recipe: Recipe, store: str | Path = DEFAULT_STORE, **options: Any) -> Run:
    """Runs or resumes a recipe (options as in `machine.run.run`: until, inline, jobs, workers, budget).

    Raises UsageError with each failed stage's message if the run did not end well.
    """
    place = Store(store)
    outcome = machine.run(recipe, place, **options)
    if outcome.code not in (machine.OK, machine.PAUSED):
        raise UsageError("\n".join(f"{stage}: {error}" for stage, error in outcome.errors.items()) or f"exit code {outcome.code}")
    return Run(place, outcome.name)


def open(name: str | None = None, store: str | Path = DEFAULT_STORE) -> Run:
    """A run by name; the newest by default."""
    place = Store(store)
    return Run(place, machine.record(place, name).name)


def stop(run: str | Run, store: str | Path = DEFAULT_STORE, wait: float = 60.0) -> bool:
    """Asks a run that goes on in another process to save and pause; whether it has ended within `wait` seconds.

    Raises UsageError if there is no such run or nobody works on it.
    """
    place, name = (run.store, run.name) if isinstance(run, Run) else (Store(store), run)
    return stopping.stop(place, name, wait).ended


class Model:
    """A loaded model: text in, text out."""

    def __init__(self, folder: Path, label: str) -> None:
        from upslope.chat.render import ChatML
        from upslope.generate.engine import LocalEngine
        from upslope.model.weights import import_hf
        from upslope.tokens.tokenizer import Tokenizer

        self.label = label
        self.tokenizer = Tokenizer.load(folder)
        self.renderer = ChatML(self.tokenizer)
        self.engine = LocalEngine(import_hf(folder), self.tokenizer, numerics="fp32")

    def generate(self, prompt: str, max_new: int = 128, temperature: float = 0.0, seed: int = 0, think: bool = False) -> str:
        """The answer to one chat message (without its reasoning)."""
        from upslope.generate.engine import Request, Sampling, generate

        ids = self.renderer.open([{"role": "user", "content": prompt}], think=think).ids
        done = generate(self.engine, [Request("0", ids.tolist(), Sampling(max_new=max_new, temperature=temperature), seed)])[0]
        opened = [self.tokenizer.think, *self.tokenizer.encode("\n")] if think else []
        return str(self.renderer.parse([*opened, *done.ids.tolist()]).content)

    def logprobs(self, text: str) -> np.ndarray:
        """Log-probability of each token of a text given those before it, (tokens,) float32, nats; the first is 0."""
        return self.engine.score([self.tokenizer.encode(text)])[0].logprobs

    def __repr__(self) -> str:
        return f"Model({self.label})"


def load(name: str | None = None, store: str | Path = DEFAULT_STORE) -> Model:
    """A model from a run (its release, else its last checkpoint), RUN/STAGE or a Hugging Face folder; the newest run by default."""
    from upslope.cli.models import find_model

    found = find_model(name, Store(store))
    return Model(found.folder, found.label)
