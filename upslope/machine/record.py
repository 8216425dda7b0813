"""What readers (show, report, compare, notebooks) see of a run: plain values, taken from the store alone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class StageRecord:
    """One stage of a run. state: sealed, partial, running, failed or absent. data: the artifact's folder."""

    name: str
    kind: str
    fp: str
    state: str
    manifest: dict[str, Any] | None
    events: list[dict[str, Any]]
    data: Path


@dataclass(frozen=True)
class RunRecord:
    """A run: its recipe, stages in topological order, edges (stage → stages it reads), events of the run itself."""

    name: str
    recipe: dict[str, Any]
    stages: tuple[StageRecord, ...]
    edges: dict[str, tuple[str, ...]]
    events: list[dict[str, Any]]
    command: str
    started: str
    overrides: dict[str, str]

    def stage(self, name: str) -> StageRecord | None:
        """The stage with that name, if the recipe has it."""
        return next((s for s in self.stages if s.name == name), None)
