"""Differences: between recipes as knobs, between runs as the first stage whose artifact differs, and why a stage is built."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from upslope.machine.graph import Graph, Node
from upslope.machine.record import RunRecord
from upslope.machine.store import Manifest, Store


@dataclass(frozen=True)
class Change:
    """One differing value: dotted path, left, right (None = not there)."""

    path: str
    left: Any
    right: Any


def diff(left: Any, right: Any, path: str = "") -> list[Change]:
    """All differing leaves of two plain values."""
    if isinstance(left, Mapping) and isinstance(right, Mapping):
        keys = dict.fromkeys([*left, *right])
        return [c for k in keys for c in diff(left.get(k), right.get(k), f"{path}.{k}" if path else str(k))]
    return [] if left == right else [Change(path, left, right)]


@dataclass(frozen=True)
class Comparison:
    """Two runs. knobs: differing recipe values; first: the first stage whose artifact differs; facts: differing numbers by stage."""

    knobs: list[Change]
    first: str | None
    cause: str
    facts: list[Change]
    seconds: dict[str, tuple[float, float]]


def compare_runs(left: RunRecord, right: RunRecord) -> Comparison:
    """Knobs, first diverging stage with its cause, differing facts, cost."""
    knobs = [c for c in diff(left.recipe, right.recipe) if c.path != "name"]
    first, cause = None, "every artifact is the same"
    for stage in left.stages:
        other = right.stage(stage.name)
        if other is None:
            first, cause = stage.name, "the other run has no such stage"
        elif stage.fp != other.fp:
            mine = [c for c in knobs if c.path.startswith(f"stages.{stage.name}.")] or [c for c in knobs if c.path == "seed"]
            first = stage.name
            cause = (
                "; ".join(f"{c.path.removeprefix('stages.')}: {c.left!r} → {c.right!r}" for c in mine[:4])
                or "its code version or outside data differ"
            )
        elif stage.manifest and other.manifest and stage.manifest["files"] != other.manifest["files"]:
            bits = diff(stage.manifest["bits"], other.manifest["bits"])
            first, cause = (
                stage.name,
                "same identity, other bytes: "
                + ("; ".join(f"{b.path} {b.left} → {b.right}" for b in bits) or "bits-key equal: a determinism bug"),
            )
        else:
            continue
        break
    facts, seconds = [], {}
    for stage in left.stages:
        other = right.stage(stage.name)
        if other and stage.manifest and other.manifest:
            facts += diff(stage.manifest["facts"], other.manifest["facts"], stage.name)
            seconds[stage.name] = (stage.manifest["seconds"], other.manifest["seconds"])
    return Comparison(knobs, first, cause, facts, seconds)


@dataclass(frozen=True)
class Why:
    """Why a stage is in its state: the nearest sealed artifact of its kind and what differs from it."""

    node: Node
    state: str
    nearest: Manifest | None
    changes: list[Change]


def why_stage(graph: Graph, name: str, store: Store) -> Why:
    """The state of a stage, and for one that must be built, the exact fields and inputs that differ from the nearest artifact."""
    from upslope.config import dump

    node = graph.nodes[name]
    state = store.state(node.kind, node.fp)
    if state == "sealed":
        return Why(node, state, store.find(node.kind, node.fp), [])
    best: tuple[int, Manifest, list[Change]] | None = None
    mine = {"config": dump(node.stage), "inputs": {f: list(fps) for f, fps in node.input_fps.items()}, "version": type(node.stage).version}
    for _, manifest in store.artifacts():
        if manifest is None or manifest.kind != node.kind:
            continue
        changes = diff({"config": manifest.config, "inputs": manifest.inputs, "version": manifest.version}, mine)
        if best is None or len(changes) < best[0]:
            best = (len(changes), manifest, changes)
    return Why(node, state, best[1] if best else None, best[2] if best else [])
