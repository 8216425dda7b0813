"""`upslope plan RECIPE --ranks N`: a run on ranks that are not there, beside published ones."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, TypeVar

from upslope.cli.tables import emit
from upslope.config import Config, UsageError, dump, validated
from upslope.machine.stage import Recipe
from upslope.parallel.config import Mesh
from upslope.recipes.labs import PRESETS, get
from upslope.recipes.published_runs import published, summary, table
from upslope.recipes.rehearsals import Subject, of_lab, of_recipe
from upslope.train.rehearsal.job import Job
from upslope.train.rehearsal.machines import Machine, machine, template
from upslope.train.rehearsal.plan import Rehearsal, rehearse

DEFAULT_MACHINE = "h100x8"
C = TypeVar("C", bound=Config)
LAUNCHES = "so short a step is bound by launches and Python, which are not counted: real steps of small models take milliseconds"
_AXES = ("dp", "fsdp", "tp", "cp", "pp")


@dataclass(frozen=True)
class Answer:
    """A rehearsal with what was rehearsed and what had to be assumed."""

    subject: Subject
    job: Job
    rehearsal: Rehearsal

    def __str__(self) -> str:
        model, job = self.subject.model, self.job
        held = f"moments {job.states}" + (f", {job.optim.kind}" if job.optim.kind != "adamw" else "")
        lines = [
            f"{self.subject.title}: {model.params() / 1e9:,.3g}B parameters, vocabulary {model.vocab:,}",
            f"{job.precision} products, {job.weights} weights, {job.gradients} gradients, {held}; recomputes {job.recompute}",
            "",
            self.rehearsal.render(),
            *([LAUNCHES] if self.rehearsal.time.step < 0.01 else []),
            *(f"assumed: {note}" for note in self.subject.assumed),
            f"checked against: {summary(published())} (upslope plan --published)",
        ]
        return "\n".join(lines)

    __repr__ = __str__

    def values(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "title": self.subject.title,
            "parameters": self.subject.model.params(),
            "vocab": self.subject.model.vocab,
            "job": dump(self.job),
            "assumed": list(self.subject.assumed),
            **self.rehearsal.values(),
        }


def answer(
    subject: Recipe | str, ranks: int, mesh: str | Mesh | None, on: str | Machine | None, stage: str | None, job: dict[str, Any]
) -> Answer:
    """Rehearses a recipe's stage, or a lab's preset at its real size where the subject is its name. UsageError for what cannot be."""
    if ranks < 1:
        raise UsageError(f"--ranks {ranks}: there must be one at least\nway out: the number of accelerators, e.g. --ranks 64")
    place = on if isinstance(on, Machine) else machine(on or DEFAULT_MACHINE)
    if isinstance(subject, str):
        if stage is not None:
            raise UsageError(f"--stage {stage!r}: a lab's preset at its real size is rehearsed in pre-training alone\nway out: --size tiny")
        found = of_lab(get(subject.replace("-", "_")), place)
    else:
        found = of_recipe(subject, stage)
    wanted = parse_mesh(mesh, ranks) if isinstance(mesh, str) else mesh
    fitted = found.fitted(ranks, wanted, job)
    return Answer(found, fitted, rehearse(found.model, fitted, ranks, wanted, place))


def is_lab(name: str) -> bool:
    """Whether a name is a lab's preset."""
    return name.replace("-", "_") in PRESETS


def parse_mesh(text: str, ranks: int) -> Mesh:
    """A mesh of "dp=2, tp=8", "tp 8, pp 2" or "tp 8 x pp 2"; where fsdp is not named, it takes the ranks that are left."""
    mesh, given = parse_pairs(re.sub(r"\s+x\s+", ",", text), Mesh, {}, "--mesh", "'dp 2, tp 8, pp 4'")
    if "fsdp" in given:
        return mesh
    named = [a for a in _AXES if a in given]
    taken = prod(getattr(mesh, a) for a in named)
    if ranks % taken:
        raise UsageError(
            f"--mesh {text!r}: ranks = {ranks} is not divisible by {' x '.join(named)} = {taken}\n"
            f"way out: axes whose product divides {ranks} (fsdp takes what is left), or no --mesh: a legal one is suggested"
        )
    return mesh.replace(fsdp=ranks // taken)


def parse_pairs(text: str, cls: type[C], base: Mapping[str, Any], option: str, example: str) -> tuple[C, dict[str, Any]]:
    """A config, and which fields "name value, name=value" gave it; whole numbers may be products: "512x8192". base: fields that must be
    there. UsageError names what is wrong."""
    found: dict[str, Any] = {}
    for item in (part.strip() for part in text.split(",")):
        match = re.fullmatch(r"([a-z_]+)\s*[=\s]\s*(\S+)", item)
        if not match:
            raise UsageError(f"{option} {text!r}: {item!r} is not a name and a value\nway out: {option} {example}")
        name = match[1]
        if name not in cls.model_fields:
            near = difflib.get_close_matches(name, list(cls.model_fields), n=1, cutoff=0.5)
            hint = f"did you mean {near[0]}? " if near else ""
            raise UsageError(f"{option} {text!r}: no {name!r} here\nway out: {hint}known: {', '.join(cls.model_fields)}")
        if name in found:
            raise UsageError(f"{option} {text!r}: {name} is given twice\nway out: once each")
        found[name] = _value(match[2])
    try:
        whole = validated(cls, {**base, **found}, option)
    except UsageError as error:
        raise UsageError(f"{error}\nway out: {option} {example}") from None
    return whole, {name: getattr(whole, name) for name in found}


def _value(text: str) -> Any:
    if re.fullmatch(r"\d[\d_]*(x\d[\d_]*)*", text):
        return prod(int(n) for n in text.split("x"))
    try:
        return json.loads(text)
    except ValueError:
        return text


def parse_job(text: str | None) -> dict[str, Any]:
    """Changes to the job, of "batch=512x8192, recompute=full, tokens=15e12"."""
    given = parse_pairs(text, Job, {"batch": 1}, "--job", "'batch 512x8192, length 8192, recompute full'")[1] if text is not None else {}
    if "optim" in given:
        raise UsageError("--job: the optimizer is the stage's\nway out: --set STAGE.optim.kind=muon")
    return given


def show(subject: Recipe | str, ranks: int, mesh: str | None, on: str | None, stage: str | None, job: str | None, as_json: bool) -> None:
    """Prints a rehearsal."""
    found = answer(subject, ranks, mesh, on, stage, parse_job(job))
    emit(found.values()) if as_json else print(found)


def show_published(as_json: bool) -> None:
    """Prints every published run beside its prediction."""
    rows = published()
    emit([r._asdict() for r in rows]) if as_json else print(f"{table(rows)}\n\n{summary(rows)}")


def show_template() -> None:
    """Prints a machine file with every field."""
    print(template(), end="")
