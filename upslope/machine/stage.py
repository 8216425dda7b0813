"""Stages and artifacts: what a recipe is made of, and what flows between its parts."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, Self

from upslope.config import Config, FrozenDict, Open

if TYPE_CHECKING:
    from upslope.machine.context import Context


@dataclass(frozen=True)
class Artifact:
    """An immutable folder of files. Subclasses add readers; `load` must work on the folder alone, from a notebook.

    An artifact may point at others, by relative path (`refs`), never at anything else.
    """

    path: Path

    @classmethod
    def load(cls, path: Path) -> Self:
        """The artifact in a folder."""
        return cls(Path(path))

    def refs(self) -> tuple[Path, ...]:
        """The folders of other artifacts that this one points at."""
        return ()

    @classmethod
    def named(cls) -> str:
        """The import path that a manifest records, so that the artifact can be opened without its stage."""
        return f"{cls.__module__}:{cls.__qualname__}"


def artifact_class(name: str) -> type[Artifact]:
    """The class that a manifest's `artifact` names."""
    module, _, attr = name.partition(":")
    value = getattr(importlib.import_module(module), attr)
    assert isinstance(value, type) and issubclass(value, Artifact)
    return value


class Need(NamedTuple):
    """What a stage asks of a launcher.

    ranks: processes that run it together. devices: a rank, memory: bytes a rank; launchers of one machine do not read shape, devices and
    memory. start: seconds in which all ranks must have come; wait: seconds for which ranks may wait for one of them while it runs.
    """

    shape: Literal["map", "spmd", "actors"] = "spmd"
    ranks: int = 1
    devices: int = 0
    memory: int = 0
    start: float = 60.0
    wait: float = 600.0


class Cost(NamedTuple):
    """A price, before anything runs: floating-point operations, seconds on this machine, bytes on disk."""

    flops: float = 0.0
    seconds: float = 0.0
    bytes: float = 0.0


class Problem(NamedTuple):
    """Something that `check` found before anything ran: dotted path of the field, and what to do about it."""

    path: str
    message: str


OK, FAILED, USAGE, REFUSED, UNDECIDED, PAUSED = 0, 1, 2, 3, 4, 75  # exit codes of a job and of a run


class Paused(Exception):
    """Raised by a stage that saw `ctx.stopping`: its work so far is saved, the same command continues it."""


class Refused(Exception):
    """Raised by a stage that will not do what was asked (a gate): exit code 3."""


class Undecided(Exception):
    """Raised by a stage that lacks the evidence to answer: exit code 4."""


class Stage(Open):
    """One step of a recipe: config + run. A kind is one file in `upslope.stages`, or an import path.

    seeded: whether the result depends on a seed (then `seed` is filled from the recipe; otherwise it stays None).
    version: bumped when the code gives other results for the same config; part of the identity.
    makes: name of the artifact class that `run` returns.
    code: packages whose source is hashed as advice (drift is reported, not rebuilt, unless the user asks for a rebuild).
    """

    home: ClassVar[str] = "upslope.stages"
    version: ClassVar[int] = 1
    code: ClassVar[tuple[str, ...]] = ()
    makes: ClassVar[str] = "Artifact"
    seeded: ClassVar[bool] = False

    seed: int | None = None

    def produces(self) -> str:
        """Name of the artifact class that this very stage makes; kinds whose form decides override it."""
        return type(self).makes

    def check(self, inputs: Mapping[str, Any]) -> list[Problem]:
        """Problems that can be seen before anything runs; inputs: field path → upstream Stage or Manifest."""
        return []

    def cost(self, inputs: Mapping[str, Any]) -> Cost:
        """The price; zero where nothing is known."""
        return Cost()

    def need(self) -> Need:
        """Shape, ranks, memory and patience. On ranks > 1 each is a process of its own that runs `run` (see `Context.stop_now`)."""
        return Need()

    def run(self, ctx: Context) -> Artifact:
        """Does the work; called on every rank. Files go to `ctx.out`, resumable state to `ctx.work`; what rank 0 returns is sealed."""
        raise NotImplementedError(f"{type(self).__name__} has no run()")


SCHEMA = 1


class Recipe(Config):
    """A graph of stages: names are roles, kinds are code; edges are the `Input` fields."""

    name: str
    seed: int = 0
    stages: FrozenDict[str, Stage]
    schema_version: int = SCHEMA
