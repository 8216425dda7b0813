"""The graph of a recipe: order, fingerprints, and everything that can be known to be wrong before anything runs."""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from upslope.config import Config, UsageError, Wants, dump, inputs_of, marks, outside, tag
from upslope.machine.files import digest_path
from upslope.machine.identity import Fp, class_code, identity, pin_sources
from upslope.machine.privacy import refuse_secrets
from upslope.machine.stage import Problem, Recipe, Stage


@dataclass(frozen=True)
class Node:
    """A stage in its place: sources pinned, seed filled in, fingerprints known. inputs: field → stage names."""

    name: str
    stage: Stage
    fp: Fp
    inputs: dict[str, tuple[str, ...]]
    input_fps: dict[str, tuple[Fp, ...]]

    @property
    def kind(self) -> str:
        """The stage's kind as folders and manifests name it."""
        cls = type(self.stage)
        return class_code(cls).split("@")[0] if outside(cls) else str(tag(self.stage))

    @property
    def reads(self) -> tuple[str, ...]:
        """Names of the stages that this one reads, without repeats."""
        return tuple(dict.fromkeys(n for names in self.inputs.values() for n in names))


@dataclass(frozen=True)
class Graph:
    """A resolved recipe; nodes in an order in which they can run (ties in the recipe's order)."""

    recipe: Recipe
    nodes: dict[str, Node]

    def upto(self, names: Iterable[str]) -> Graph:
        """The part that these stages need, themselves included."""
        keep: set[str] = set()
        todo = list(names)
        while todo:
            name = todo.pop()
            if name not in keep:
                keep.add(name)
                todo += self.nodes[name].reads
        return Graph(self.recipe, {n: node for n, node in self.nodes.items() if n in keep})

    def below(self, name: str) -> set[str]:
        """Names of all stages that depend on one, directly or not."""
        found = {name}
        for node in self.nodes.values():
            if any(r in found for r in node.reads):
                found.add(node.name)
        return found - {name}

    def match(self, pattern: str) -> list[str]:
        """Stage names that a name or glob means; UsageError with the nearest names if there is none."""
        found = [n for n in self.nodes if fnmatch.fnmatchcase(n, pattern)]
        if not found:
            near = difflib.get_close_matches(pattern, list(self.nodes), n=3, cutoff=0.4)
            hint = f"did you mean {' or '.join(near)}?" if near else f"stages: {', '.join(self.nodes)}"
            raise UsageError(f"no stage named {pattern!r} in {self.recipe.name}; {hint}")
        return found


def order(stages: Mapping[str, Stage]) -> list[str]:
    """Stage names in running order; UsageError on an unknown input (with nearest names) or a cycle (spelled out)."""
    reads: dict[str, list[str]] = {}
    for name, stage in stages.items():
        for field, sources in inputs_of(stage).items():
            for source in sources:
                if source not in stages:
                    near = difflib.get_close_matches(source, list(stages), n=3, cutoff=0.4)
                    hint = f"did you mean {' or '.join(near)}?" if near else f"stages: {', '.join(stages)}"
                    raise UsageError(f"stages.{name}.{field} = {source!r}: there is no stage of that name; {hint}")
                reads.setdefault(name, []).append(source)
    done: list[str] = []
    state: dict[str, int] = {}

    def visit(name: str, trail: tuple[str, ...]) -> None:
        if state.get(name) == 2:
            return
        if state.get(name) == 1:
            loop = [*trail[trail.index(name) :], name]
            raise UsageError(f"the stages form a cycle: {' → '.join(reversed(loop))}\nway out: let one of them read something earlier")
        state[name] = 1
        for source in reads.get(name, []):
            visit(source, (*trail, name))
        state[name] = 2
        done.append(name)

    for name in stages:
        visit(name, ())
    return done


def resolve(recipe: Recipe, digest: Callable[[Path], str] = digest_path) -> Graph:
    """Orders, checks and fingerprints a recipe. digest: how the content of outside data is digested (may be cached)."""
    if not recipe.stages:
        raise UsageError(f"recipe {recipe.name!r} has no stages")
    nodes: dict[str, Node] = {}
    problems: list[str] = []
    for name in order(recipe.stages):
        stage = recipe.stages[name]
        if type(stage).seeded and stage.seed is None:
            stage = stage.replace(seed=recipe.seed)
        elif not type(stage).seeded and stage.seed is not None:
            raise UsageError(
                f"stages.{name}.seed = {stage.seed}: a {tag(stage)} stage draws nothing at random, so a seed would be ignored\n"
                "way out: remove it"
            )
        refuse_secrets(dump(stage), f"stages.{name}")
        inputs = inputs_of(stage)
        problems += [f"stages.{name}.{p.path}: {p.message}" for p in _mismatched(stage, nodes)]
        upstream = {
            field: nodes[names[0]].stage if len(names) == 1 else tuple(nodes[n].stage for n in names) for field, names in inputs.items()
        }
        problems += [f"stages.{name}.{p.path}: {p.message}" for p in stage.check(upstream)]
        stage = pin_sources(stage, digest)
        fps = {field: tuple(nodes[n].fp for n in names) for field, names in inputs.items()}
        nodes[name] = Node(name, stage, identity(stage, fps), inputs, fps)
    if problems:
        raise UsageError("\n".join(problems[:6]))
    in_recipe_order = {n: nodes[n] for n in order(recipe.stages)}
    return Graph(recipe, in_recipe_order)


def _mismatched(value: Any, nodes: Mapping[str, Node], prefix: str = "") -> list[Problem]:
    """Inputs that name a stage making another kind of artifact than the field reads."""
    found: list[Problem] = []
    if isinstance(value, Config):
        for name in type(value).model_fields:
            item, path = getattr(value, name), f"{prefix}.{name}" if prefix else name
            wants = marks(type(value), name, Wants)
            for source in dict.fromkeys(s for names in inputs_of(item).values() for s in names) if wants is not None else ():
                makes = nodes[source].stage.produces()
                if makes not in (wants.artifact, "Artifact") and makes not in wants.artifact.split("|"):
                    found.append(Problem(path, f"{source!r} makes a {makes}; a {wants.artifact.replace('|', ' or ')} is read here"))
            if wants is None:
                found += _mismatched(item, nodes, path)
    elif isinstance(value, tuple):
        for i, item in enumerate(value):
            found += _mismatched(item, nodes, f"{prefix}.{i}")
    return found
