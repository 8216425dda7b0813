"""Addressed overrides: `pretrain.optim.lr = 0.01`, `sft_*.epochs = 2`, or a bare `optim.lr` that fits one stage.

Kinds are set before fields, values that the new kind has no place for are dropped and named, and an override that
matches nothing is an error. Every value remembers where it came from.
"""

from __future__ import annotations

import difflib
import fnmatch
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from upslope.config import Config, Open, UsageError, config_classes, dump, find_kind, unknown_key, validated
from upslope.machine.stage import Recipe, Stage


@dataclass(frozen=True)
class Draft:
    """A recipe, the origin of each value that is not a default (dotted path → "preset tiny", "--set", a file), notes for the user."""

    recipe: Recipe
    origins: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def parse_value(text: str) -> Any:
    """A value as TOML reads it (numbers, booleans, lists, tables, quoted strings); anything else is a plain string."""
    try:
        return tomllib.loads(f"v = {text}")["v"]
    except tomllib.TOMLDecodeError:
        return text


def parse_assignment(text: str) -> tuple[str, Any]:
    """Splits `path=value`."""
    path, sign, value = text.partition("=")
    if not sign or not path.strip():
        raise UsageError(f"--set {text!r}: write path=value, for example --set pretrain.optim.lr=0.01")
    return path.strip(), parse_value(value.strip())


def apply(draft: Draft, changes: Iterable[tuple[str, Any]], origin: str = "--set") -> Draft:
    """Applies overrides; UsageError naming what a path could have meant."""
    targets: list[tuple[str | None, tuple[str, ...], Any]] = []
    for path, value in changes:
        targets += [(stage, rest, value) for stage, rest in _targets(draft.recipe, path)]
    targets.sort(key=lambda t: t[1][-1:] != ("kind",))  # stable: kinds first
    recipe, origins, notes = draft.recipe, dict(draft.origins), list(draft.notes)
    stages = dict(recipe.stages)
    top: dict[str, Any] = {}
    for name, rest, value in targets:
        if name is None:
            top[rest[0]] = value
            origins[rest[0]] = origin
            continue
        stages[name], dropped = _set(stages[name], name, rest, value)
        origins[".".join((name, *rest))] = origin
        notes += [f"stages.{name}.{d} dropped: the new kind has no such field" for d in dropped]
    changed = validated(
        Recipe, {"name": recipe.name, "seed": recipe.seed, "schema_version": recipe.schema_version, **top, "stages": stages}
    )
    return Draft(changed, origins, tuple(notes))


def _targets(recipe: Recipe, path: str) -> list[tuple[str | None, tuple[str, ...]]]:
    parts = tuple(path.split("."))
    if parts in (("name",), ("seed",)):
        return [(None, parts)]
    if parts[0] == "stages" and len(parts) > 1:
        parts = parts[1:]
    named = [n for n in recipe.stages if fnmatch.fnmatchcase(n, parts[0])]
    if named and len(parts) > 1:
        able = [n for n in named if _has(recipe.stages[n], parts[1:])]  # a glob means those of its stages that have the field
        return [(n, parts[1:]) for n in (able if len(named) > 1 and able else named)]
    if named:
        raise UsageError(
            f"--set {path}: that is a whole stage; name a field of it: {', '.join(sorted(type(recipe.stages[named[0]]).model_fields))}"
        )
    fits = [n for n, stage in recipe.stages.items() if _has(stage, parts)]
    if len(fits) == 1:
        return [(fits[0], parts)]
    if fits:
        raise UsageError(
            f"--set {path}: fits {len(fits)} stages: {', '.join(fits)}\nway out: name one ({fits[0]}.{path}) or use a glob ('*.{path}')"
        )
    everywhere = sorted({f"{n}.{p}" for n, s in recipe.stages.items() for p in _paths(dump(s))})
    near = difflib.get_close_matches(path, everywhere, n=3, cutoff=0.5) or [p for p in everywhere if p.endswith("." + parts[-1])][:3]
    raise UsageError(
        f"--set {path}: matches nothing in recipe {recipe.name!r}"
        + (f"; did you mean {' or '.join(near)}?" if near else f"\nstages: {', '.join(recipe.stages)}")
    )


def _paths(value: Any, prefix: str = "") -> list[str]:
    if isinstance(value, dict):
        return [p for k, v in value.items() for p in _paths(v, f"{prefix}.{k}" if prefix else k)] + ([prefix] if prefix else [])
    return [prefix]


def _has(stage: Stage, parts: tuple[str, ...]) -> bool:
    value: Any = dump(stage)
    for part in parts:
        if isinstance(value, dict) and part in value:
            value = value[part]
        elif isinstance(value, list) and part.isdigit() and int(part) < len(value):
            value = value[int(part)]
        else:
            return False
    return True


def _set(stage: Stage, name: str, path: tuple[str, ...], value: Any) -> tuple[Stage, list[str]]:
    """The stage with one value changed, and the dotted paths of values that a change of kind dropped."""
    data = dump(stage)
    where: Any = data
    owner: Any = stage
    for i, part in enumerate(path[:-1]):
        here = ".".join((f"stages.{name}", *path[: i + 1]))
        if isinstance(where, list) and part.isdigit() and int(part) < len(where):
            where, owner = where[int(part)], owner[int(part)]
        elif isinstance(where, dict) and part in where:
            if where[part] is None:
                where[part] = {}
            where, owner = where[part], owner.get(part) if isinstance(owner, Mapping) else getattr(owner, part)
        else:
            raise UsageError(f"{here}: {_unknown(part, where, owner)}")
    last, dropped = path[-1], []
    if last == "kind":
        dropped = _change_kind(stage, name, path, where, value)
    elif isinstance(where, list) and last.isdigit() and int(last) < len(where):
        where[int(last)] = value
    elif isinstance(where, dict):
        if isinstance(owner, Config) and last not in type(owner).model_fields:
            raise UsageError(f"stages.{name}.{'.'.join(path)}: {unknown_key(last, type(owner).model_fields, type(owner))}")
        where[last] = value
    else:
        raise UsageError(f"stages.{name}.{'.'.join(path)}: {_unknown(last, where, owner)}")
    return build_stage(data, name), dropped


def _unknown(part: str, where: Any, owner: Any) -> str:
    if isinstance(owner, Config):
        return unknown_key(part, type(owner).model_fields, type(owner))
    known = list(where) if isinstance(where, dict) else [str(i) for i in range(len(where))] if isinstance(where, list) else []
    return f"{part!r} is not among {', '.join(map(str, known)) or 'anything: this is a plain value'}"


def _change_kind(stage: Stage, name: str, path: tuple[str, ...], where: dict[str, Any], kind: Any) -> list[str]:
    """Replaces a tagged value in place, keeping the fields that the new kind has too."""
    owner: Any = stage
    annotation: Any = Stage
    for part in path[:-1]:
        if isinstance(owner, Config):
            annotation = type(owner).model_fields[part].annotation
            owner = getattr(owner, part)
        else:
            owner = owner[int(part)] if isinstance(owner, tuple) else owner[part]
    new = _member(annotation, str(kind), f"stages.{name}.{'.'.join(path)}")
    old = type(owner) if isinstance(owner, Config) else None
    dropped = [f"{'.'.join((*path[:-1], k))} = {v!r}" for k, v in where.items() if k != "kind" and k not in new.model_fields]
    # values that only were the old kind's defaults do not carry over: the new kind has its own
    defaults = {k: f.default for k, f in old.model_fields.items()} if old else {}
    kept = {k: v for k, v in where.items() if k in new.model_fields and k != "kind" and getattr(owner, k, None) != defaults.get(k)}
    dropped = [
        d
        for d in dropped
        if not any(d.startswith(".".join((*path[:-1], k)) + " =") and getattr(owner, k, None) == v for k, v in defaults.items())
    ]
    where.clear()
    where.update({"kind": kind, **kept})
    return dropped


def _member(annotation: Any, kind: str, where: str) -> type[Config]:
    known = []
    for cls in config_classes(annotation):
        if issubclass(cls, Open) and "home" in vars(cls):
            return find_kind(cls, kind)
        tag = cls.model_fields["kind"].default if "kind" in cls.model_fields else getattr(cls, "kind", None)
        if tag == kind:
            return cls
        known.append(str(tag))
    near = difflib.get_close_matches(kind, known, n=2, cutoff=0.4)
    raise UsageError(
        f"{where} = {kind!r}: "
        + (f"did you mean {' or '.join(near)}? " if near else "")
        + f"kinds: {', '.join(known) or 'none, this value has no kinds'}"
    )


def build_stage(data: Mapping[str, Any], name: str) -> Stage:
    """A stage from plain values with its `kind`; UsageError with dotted paths."""
    if "kind" not in data:
        raise UsageError(f"stages.{name}: has no kind")
    cls = find_kind(Stage, str(data["kind"]))
    stage = validated(cls, {k: v for k, v in data.items() if k != "kind"}, f"stages.{name}")
    assert isinstance(stage, Stage)
    return stage
