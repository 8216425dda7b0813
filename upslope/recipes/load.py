"""Finding recipes: presets by name, TOML files by path, both with parameters and overrides."""

from __future__ import annotations

import difflib
import importlib
import inspect
import pkgutil
import tomllib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import upslope.recipes as home
from upslope.config import FrozenDict, UsageError, dump
from upslope.machine.stage import SCHEMA, Recipe
from upslope.recipes import labs
from upslope.recipes.overrides import Draft, apply, build_stage, parse_assignment

_NOT_PRESETS = ("load", "overrides", "scale", "labs", "knobs", "published_runs")


def presets() -> dict[str, Callable[..., Recipe]]:
    """All presets by name."""
    found = {}
    for info in pkgutil.iter_modules(home.__path__):
        if info.name not in _NOT_PRESETS:
            function = getattr(importlib.import_module(f"upslope.recipes.{info.name}"), info.name, None)
            if callable(function):
                found[info.name] = function
    return found


def parameters(name: str) -> tuple[str, ...]:
    """The parameters of a preset; none for what is not one."""
    function = presets().get(name.replace("-", "_"))
    return tuple(inspect.signature(function).parameters) if function else ()


def load(name: str, sets: Sequence[str] = (), **params: Any) -> Draft:
    """A recipe by preset name or TOML path, with `--set` assignments applied. params: the preset function's arguments."""
    draft = _base(name, params)
    return apply(draft, [parse_assignment(s) for s in sets]) if sets else draft


def _base(name: str, params: Mapping[str, Any]) -> Draft:
    if name.endswith(".toml"):
        if params:
            raise UsageError(f"{', '.join('--' + p for p in params)}: only presets take these; write them into {Path(name).name}")
        return _from_toml(Path(name), ())
    found = presets()
    key = name.replace("-", "_")
    if key in labs.PRESETS:
        return _lab(key, params)
    if key not in found:
        near = difflib.get_close_matches(key, [*found, *labs.PRESETS], n=3, cutoff=0.4)
        hint = f"did you mean {' or '.join(near)}?" if near else f"presets: {', '.join(found)}"
        raise UsageError(f"no recipe named {name!r}; {hint}\na file of your own ends in .toml")
    known = inspect.signature(found[key]).parameters
    for param in params:
        if param not in known:
            raise UsageError(f"recipe {name!r} has no parameter --{param}; it takes: {', '.join('--' + k for k in known) or 'none'}")
    missing = [k for k, p in known.items() if p.default is inspect.Parameter.empty and k not in params]
    if missing:
        raise UsageError(
            f"recipe {name!r} needs {', '.join('--' + m for m in missing)}\n" + (inspect.getdoc(found[key]) or "").split("\n")[0]
        )
    recipe = found[key](**params)
    return Draft(recipe, {"": f"preset {key}"})


def _lab(key: str, params: Mapping[str, Any]) -> Draft:
    """A lab's preset at the size asked for; without one it says its price and stops."""
    from upslope.recipes.labs.recipe import lab_recipe, refuse

    if extra := [p for p in params if p not in ("size", "seed")]:
        raise UsageError(f"preset {key!r} has no parameter --{extra[0]}; it takes: --size")
    if "size" not in params:
        raise refuse(key)
    return Draft(lab_recipe(key, **params), {"": f"preset {key} at {params['size']}"})


def _from_toml(path: Path, trail: tuple[Path, ...]) -> Draft:
    if not path.is_file():
        raise UsageError(f"no recipe file {path.name!r} here")
    if path.resolve() in trail:
        raise UsageError(f"{path.name} extends itself through {' → '.join(p.name for p in trail)}")
    try:
        body = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as e:
        raise UsageError(f"{path.name} is not valid TOML: {e}") from None
    schema = body.pop("schema", None)
    if schema is None:
        raise UsageError(f"{path.name} has no schema version\nway out: add `schema = {SCHEMA}` as its first line")
    if schema > SCHEMA:
        raise UsageError(f"{path.name} has schema {schema}; this upslope reads up to {SCHEMA}\nway out: update upslope")
    stages, sets = body.pop("stages", {}), body.pop("set", {})
    parent, params = body.pop("extends", None), body.pop("params", {})
    name, seed = body.pop("name", None), body.pop("seed", None)
    if body:
        known = ["schema", "extends", "params", "name", "seed", "set", "stages"]
        bad = next(iter(body))
        near = difflib.get_close_matches(bad, known, n=1, cutoff=0.4)
        raise UsageError(f"{path.name}: unknown key {bad!r}; " + (f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"))
    if parent is None:
        draft = Draft(Recipe(name=name or path.stem, seed=seed or 0, stages=FrozenDict()))
    elif parent.endswith(".toml"):
        draft = _from_toml(path.parent / parent, (*trail, path.resolve()))
    else:
        draft = _base(parent, params)
    changes: list[tuple[str, Any]] = [
        (k, v) for k, v in (("name", name or (path.stem if parent else None)), ("seed", seed)) if v is not None
    ]
    fresh = dict(draft.recipe.stages)
    for stage, table in stages.items():
        if not isinstance(table, dict):
            raise UsageError(f"{path.name}: stages.{stage} = {table!r} is not a table; write [stages.{stage}]")
        old = draft.recipe.stages.get(stage)
        if old is not None and table.get("kind", dump(old)["kind"]) == dump(old)["kind"]:
            changes += [(f"{stage}.{p}", v) for p, v in _leaves({k: v for k, v in table.items() if k != "kind"})]
        else:
            fresh[stage] = build_stage(table, stage)
    changes += list(_flat(sets))
    grown = Draft(
        draft.recipe.replace(stages=fresh), {**draft.origins, **{s: path.name for s in stages if s not in draft.recipe.stages}}, draft.notes
    )
    return apply(grown, changes, origin=path.name)


def _leaves(table: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    found = []
    for key, value in table.items():
        path = f"{prefix}.{key}" if prefix else key
        found += _leaves(value, path) if isinstance(value, dict) and "kind" not in value else [(path, value)]
    return found


def _flat(table: Mapping[str, Any]) -> list[tuple[str, Any]]:
    return _leaves(table)
