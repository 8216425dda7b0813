"""Configs: frozen, strict, torch-free descriptions of what to do, and their canonical form.

A config is *the science*: every field that can change a result is part of its identity; a field that cannot
(`Annotated[int, Exec()]`: devices, workers, micro-batch, paths) is recorded and left out. The canonical form is what
identities are computed from (`machine.identity`) and what recipes look like in TOML.

Open kinds (`Open` subclasses: stages, sources, tasks, rewards, rules, suites, attacks, observers) name a class of this
package by its `kind`, or any class outside it by import path: `kind = "my_lab.rewards:Brevity"` or `"reward.py:Exact"`.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib
import importlib.util
import inspect
import json
import keyword
import pkgutil
import sys
import types
from collections.abc import Iterator, Mapping
from enum import Enum
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, Self, TypeVar, cast, get_args, get_origin

from pydantic import BaseModel, ConfigDict, GetCoreSchemaHandler, ValidationError, model_validator
from pydantic_core import CoreSchema, core_schema

K = TypeVar("K")
V = TypeVar("V")
T = TypeVar("T", bound="Config")

Json = dict[str, Any] | list[Any] | str | int | float | bool | None


class Exec(NamedTuple):
    """Marks a field that cannot change a result: recorded in the manifest, absent from the identity."""


class Neutral(NamedTuple):
    """Marks a field younger than its class: left out of the identity iff equal to `value`.

    `value` is what the code did before the field existed, frozen: it does not follow later changes of the default.
    """

    value: Any


class Was(NamedTuple):
    """Marks a renamed field: `Was("old")` lets recipes written before the rename load."""

    name: str


class UsageError(Exception):
    """Something the user can mend. The message says what, where, the value, and the way out (at most six lines)."""


class FrozenDict(Mapping[K, V]):
    """An immutable mapping that keeps insertion order; equality and hash ignore it."""

    __slots__ = ("_data",)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._data: dict[K, V] = dict(*args, **kwargs)

    def __getitem__(self, key: K) -> V:
        return self._data[key]

    def __iter__(self) -> Iterator[K]:
        return iter(self._data)

    def __len__(self) -> int:
        return len(self._data)

    def __hash__(self) -> int:
        return hash(frozenset(self._data.items()))

    def __repr__(self) -> str:
        return f"FrozenDict({self._data!r})"

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        key, value = get_args(source) or (Any, Any)
        inner = handler.generate_schema(dict[key, value])  # type: ignore[valid-type]
        unwrap = core_schema.no_info_before_validator_function(lambda v: dict(v) if isinstance(v, FrozenDict) else v, inner)
        return core_schema.no_info_after_validator_function(cls, unwrap)


class Config(BaseModel):
    """A frozen, strict value: scalars, enums, tuples, FrozenDicts and Configs only; unknown keys are errors."""

    model_config = ConfigDict(
        frozen=True, strict=True, extra="forbid", allow_inf_nan=False, validate_default=True, arbitrary_types_allowed=False
    )

    @model_validator(mode="before")
    @classmethod
    def _prepare(cls, data: Any) -> Any:
        """Renames old keys, accepts lists for tuples, and turns an unknown key into a did-you-mean error."""
        if not isinstance(data, Mapping):
            return data
        data = dict(data)
        known = cls.model_fields
        for name, field in known.items():
            for mark in field.metadata:
                if isinstance(mark, Was) and mark.name in data and name not in data:
                    data[name] = data.pop(mark.name)
        for key in data:
            if key not in known:
                raise ValueError(unknown_key(str(key), known, cls))
        return {k: _tuples(v) for k, v in data.items()}

    def replace(self, **changes: Any) -> Self:
        """A copy with fields changed, validated again."""
        fields = {name: getattr(self, name) for name in type(self).model_fields}
        return type(self)(**{**fields, **changes})


def _tuples(value: Any) -> Any:
    """Lists (from TOML and JSON) become tuples, recursively: configs hold no mutable values."""
    if isinstance(value, list | tuple) and not hasattr(value, "_fields"):
        return tuple(_tuples(v) for v in value)
    if isinstance(value, dict):
        return {k: _tuples(v) for k, v in value.items()}
    return value


def unknown_key(key: str, known: Mapping[str, Any], owner: type) -> str:
    """The message for a key that no field has, with the nearest names."""
    near = difflib.get_close_matches(key, list(known), n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(repr(n) for n in near)}?" if near else f"known: {', '.join(known) or 'none'}"
    return f"unknown key {key!r} in {owner.__name__}; {hint}"


# ── open kinds ────────────────────────────────────────────────────────────────────────────────────────────────────


class Open(Config):
    """Base of a family of configs whose members are found by `kind`, in the module `home` or outside the package.

    A family is a direct subclass that sets `home`; a member sets `kind`. Lookup: the member of the family with that
    kind in module `home`, or in its submodule named like the kind; a kind with ":" is an import path.
    """

    home: ClassVar[str | tuple[str, ...]]  # where members live: module(s), and their submodules named like the kinds
    kind: ClassVar[str]
    found_as: ClassVar[str]  # the import path by which an outside class was named
    origin: ClassVar[Any]  # the outside function that a family's `adapt` wrapped, if any

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        base = handler(source)
        if "home" not in vars(cls):
            return base  # a member: validated as an ordinary config

        def build(value: Any) -> Any:
            if isinstance(value, cls):
                return value
            if isinstance(value, str):
                value = {"kind": value}
            if not isinstance(value, Mapping) or "kind" not in value:
                raise ValueError(f"expected a {cls.__name__} with a 'kind'; kinds: {', '.join(sorted(kinds(cls)))}")
            fields = {k: v for k, v in value.items() if k != "kind"}
            try:
                return find_kind(cls, str(value["kind"]))(**fields)
            except ValidationError as e:  # one level of paths, not a report inside a report
                raise ValueError(explain_validation(e)) from None
            except UsageError as e:
                raise ValueError(str(e)) from None

        return core_schema.no_info_plain_validator_function(build)


def homes(family: type[Open]) -> tuple[str, ...]:
    """The modules that hold a family's members."""
    return (family.home,) if isinstance(family.home, str) else family.home


def kinds(family: type[Open]) -> dict[str, type[Open]]:
    """All members of an open family inside the package, by kind."""
    found: dict[str, type[Open]] = {}
    for home in homes(family):
        module = importlib.import_module(home)
        submodules = [f"{home}.{info.name}" for info in pkgutil.iter_modules(getattr(module, "__path__", []))]
        for part in (module, *map(importlib.import_module, submodules)):
            for value in vars(part).values():
                if inspect.isclass(value) and issubclass(value, family) and "kind" in vars(value) and not outside(value):
                    found[value.kind] = value
    return found


def find_kind(family: type[Open], kind: str) -> type[Open]:
    """The class that `kind` names: a member of the family, or an outside class by import path `module:Name`.

    Raises UsageError naming the module and attribute that do not exist, or the nearest kinds.
    """
    if ":" in kind:
        value = import_path(kind)
        adapt = getattr(family, "adapt", None)  # a family may accept plain functions: `reward.py:score`
        if not (inspect.isclass(value) and issubclass(value, family)) and callable(value) and adapt is not None:
            made = adapt(kind, value)
            made.origin, made.found_as = value, kind
            return cast(type[Open], made)
        if inspect.isclass(value) and issubclass(value, family):
            value.found_as = kind
            return value
        raise UsageError(f"kind = {kind!r}: {value!r} is not a {family.__name__}\nway out: subclass {family.__module__}:{family.__name__}")
    for home in homes(family):  # the submodule named like the kind first: the rest of the family need not be imported
        module = f"{home}.{kind}" + ("_" if keyword.iskeyword(kind) else "")
        try:
            importlib.import_module(module)
        except ModuleNotFoundError as e:
            if not home.startswith(e.name or "?") and e.name != module:
                raise
    for cls in _members(family):
        if vars(cls).get("kind") == kind:
            return cls
    found = kinds(family)
    if kind in found:
        return found[kind]
    near = difflib.get_close_matches(kind, list(found), n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"kinds: {', '.join(sorted(found))}"
    raise UsageError(f"no {family.__name__} of kind {kind!r}: {hint}\nclasses outside the package are named 'module:Class'")


def _members(family: type[Open]) -> Iterator[type[Open]]:
    for sub in family.__subclasses__():
        yield sub
        yield from _members(sub)


def import_path(path: str) -> Any:
    """The object at `module:attr` or `some/file.py:attr`."""
    where, _, attr = path.rpartition(":")
    if where.endswith(".py"):
        module = load_file(Path(where))
    else:
        if "" not in sys.path and str(Path.cwd()) not in sys.path:
            sys.path.insert(0, str(Path.cwd()))
        try:
            module = importlib.import_module(where)
        except ModuleNotFoundError as e:
            raise UsageError(
                f"{path!r}: no module named {e.name!r}\n"
                f"way out: run from the folder that holds it, or give a file: 'path/to/file.py:{attr}'"
            ) from None
    if not hasattr(module, attr):
        public = [n for n in vars(module) if not n.startswith("_")]
        near = difflib.get_close_matches(attr, public, n=3, cutoff=0.4)
        raise UsageError(
            f"{path!r}: module {where!r} has no {attr!r}"
            + (f"; did you mean {' or '.join(near)}?" if near else f"; it has: {', '.join(public[:8])}")
        )
    return getattr(module, attr)


def load_file(file: Path) -> types.ModuleType:
    """Imports a Python file by path; its folder joins `sys.path` so that its local imports work."""
    file = file.expanduser().resolve()
    if not file.is_file():
        raise UsageError(f"no such file: {file.name!r}")
    name = f"_upslope_user_{hashlib.blake2b(str(file).encode(), digest_size=6).hexdigest()}_{file.stem}"
    if name in sys.modules:
        return sys.modules[name]
    if str(file.parent) not in sys.path:
        sys.path.insert(0, str(file.parent))
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def outside(cls: type) -> bool:
    """Whether a class (or the function it wraps) lives outside this package, so that its source is identity."""
    return "origin" in vars(cls) or (cls.__module__ or "").split(".")[0] != "upslope"


# ── canonical form ────────────────────────────────────────────────────────────────────────────────────────────────


def tag(config: Config) -> str | None:
    """The `kind` of a union member or open class (an import path where the class is outside the package), else None."""
    cls = type(config)
    if isinstance(config, Open) and outside(cls):
        return cls.__dict__.get("found_as") or f"{cls.__module__}:{cls.__qualname__}"
    kind = getattr(config, "kind", None)
    return kind if isinstance(kind, str) else None


def marks(cls: type[Config], name: str, of: type) -> Any:
    """The first mark of type `of` on a field, or None."""
    for mark in cls.model_fields[name].metadata:
        if isinstance(mark, of) or mark is of:
            return mark if isinstance(mark, of) else of()
    return None


def dump(value: Any, *, identity: bool = False, code: Any = None) -> Any:
    """Plain JSON values of a config.

    identity=False: everything, as a recipe file would hold it (kinds written, inputs as stage names).
    identity=True: the canonical form: `Exec` fields and inputs left out, `Neutral` fields left out where neutral,
    outside classes written as the digest that `code(cls)` gives.
    """
    if isinstance(value, Input):
        return value.stage
    if isinstance(value, Config):
        cls = type(value)
        out: dict[str, Any] = {}
        kind = tag(value)
        if kind is not None:
            out["kind"] = code(cls) if identity and outside(cls) and code is not None else kind
        for name in cls.model_fields:
            item = getattr(value, name)
            if identity:
                if marks(cls, name, Exec) is not None or _is_input(item):
                    continue
                neutral = marks(cls, name, Neutral)
                if neutral is not None and item == neutral.value:
                    continue
            if name == "kind":
                continue
            out[name] = dump(item, identity=identity, code=code)
        return out
    if isinstance(value, Mapping):  # in an identity, inputs count by fingerprint (see `inputs_of`), not by the stage's name
        return {str(k): dump(v, identity=identity, code=code) for k, v in value.items() if not (identity and _is_input(v))}
    if isinstance(value, tuple | list):
        return [dump(v, identity=identity, code=code) for v in value]
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, Path):
        return str(value)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"{type(value).__name__} cannot be part of a config: {value!r}")


def canonical_json(value: Any) -> bytes:
    """JSON with sorted keys, no blanks, no NaN: equal values give equal bytes in every process."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


# ── inputs, durations, sources ────────────────────────────────────────────────────────────────────────────────────


class Wants(NamedTuple):
    """Marks an input field with the name of the artifact class that it reads: `Annotated[Input, Wants("Corpus")]`."""

    artifact: str


class Input(Config):
    """A reference to the stage, by name, whose artifact is read. In files it is just the name."""

    stage: str

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, data: Any) -> Any:
        return {"stage": data} if isinstance(data, str) else data

    def __repr__(self) -> str:
        return f"Input({self.stage!r})"


def _is_input(value: Any) -> bool:
    return isinstance(value, Input) or (isinstance(value, tuple) and len(value) > 0 and all(isinstance(v, Input) for v in value))


def inputs_of(config: Any, prefix: str = "") -> dict[str, tuple[str, ...]]:
    """All inputs below a config: dotted field path → stage names, in order."""
    found: dict[str, tuple[str, ...]] = {}
    if isinstance(config, Input):
        found[prefix] = (config.stage,)
    elif _is_input(config):
        found[prefix] = tuple(i.stage for i in config)
    elif isinstance(config, Config):
        for name in type(config).model_fields:
            found |= inputs_of(getattr(config, name), f"{prefix}.{name}" if prefix else name)
    elif isinstance(config, Mapping):
        for key, item in config.items():
            found |= inputs_of(item, f"{prefix}.{key}" if prefix else str(key))
    elif isinstance(config, tuple):
        for i, item in enumerate(config):
            found |= inputs_of(item, f"{prefix}.{i}" if prefix else str(i))
    return found


class Duration(Config):
    """A length of training: `Duration.of("500st")`, "1e9tok", "2ep" or "20tpp" (tokens per parameter)."""

    amount: float
    unit: Literal["st", "tok", "ep", "tpp"]

    @model_validator(mode="before")
    @classmethod
    def _parse(cls, data: Any) -> Any:
        if not isinstance(data, str):
            return data
        for unit in ("tok", "tpp", "st", "ep"):
            if data.endswith(unit):
                try:
                    return {"amount": float(data[: -len(unit)]), "unit": unit}
                except ValueError:
                    break
        raise ValueError(f"{data!r} is not a duration; write '500st', '1e9tok', '2ep' or '20tpp'")

    @classmethod
    def of(cls, text: str) -> Duration:
        """Parses the short form."""
        return cls.model_validate(text)

    @model_validator(mode="after")
    def _positive(self) -> Duration:
        if self.amount < 0:
            raise ValueError(f"a duration must be ≥ 0, not {self.amount:g}{self.unit}")
        return self

    def steps(self, tokens_per_step: int, *, tokens_per_epoch: int = 0, params: int = 0) -> int:
        """The number of optimizer steps, at least one for a positive duration."""
        tokens = {"tok": self.amount, "ep": self.amount * tokens_per_epoch, "tpp": self.amount * params}
        if self.unit == "st":
            return int(self.amount)
        return max(1, round(tokens[self.unit] / tokens_per_step)) if self.amount > 0 else 0

    def __str__(self) -> str:
        return f"{self.amount:g}{self.unit}"


class Source(Config):
    """Outside data. Identity is the content digest, never the path or the time; `plan` pins it.

    uri: a file or folder, or `package:NAME` for data shipped inside this package.
    """

    uri: Annotated[str, Exec()]
    digest: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _from_uri(cls, data: Any) -> Any:
        return {"uri": data} if isinstance(data, str) else data

    def path(self) -> Path:
        """The local path of the data; UsageError where there is none."""
        if self.uri.startswith("package:"):
            path = Path(__file__).parent / "assets" / self.uri.removeprefix("package:")
        else:
            path = Path(self.uri).expanduser()
        if not path.exists():
            raise UsageError(f"source {self.uri!r} does not exist\nway out: check the path; relative paths start at the current folder")
        return path


# ── errors ────────────────────────────────────────────────────────────────────────────────────────────────────────


def explain_validation(error: ValidationError, prefix: str = "", data: Any = None) -> str:
    """A pydantic error as one line per problem: dotted path = value: what is wrong. data: what was validated, to name paths as written."""
    lines = []
    for item in error.errors(include_url=False)[:5]:
        path = ".".join([p for p in [prefix] if p] + _written(item["loc"], data))
        message = item["msg"].removeprefix("Value error, ")
        value = item.get("input")
        shown = f" = {value!r}" if isinstance(value, bool | int | float | str) else ""
        lines.append(f"{path}{shown}: {message}" if path else message)
    return "\n".join(lines)


def _written(loc: tuple[int | str, ...], data: Any) -> list[str]:
    """A location without the union tags that pydantic puts into it."""
    parts: list[str] = []
    for part in loc:
        if isinstance(data, Mapping) and part not in data and data.get("kind") == part:
            continue
        parts.append(str(part))
        if isinstance(data, Mapping):
            data = data.get(part)
        elif isinstance(data, list | tuple) and isinstance(part, int) and part < len(data):
            data = data[part]
        else:
            data = None
    return parts


def validated(cls: type[T], data: Mapping[str, Any], where: str = "") -> T:
    """Builds a config from plain values; UsageError with dotted paths where it cannot."""
    try:
        return cls(**data)
    except ValidationError as e:
        raise UsageError(explain_validation(e, where, data)) from None


@lru_cache(maxsize=512)
def config_classes(annotation: Any) -> tuple[type[Config], ...]:
    """The Config classes that an annotation admits, through Annotated, unions, tuples and mappings."""
    if inspect.isclass(annotation) and issubclass(annotation, Config):
        return (annotation,)
    args = get_args(annotation)[:1] if get_origin(annotation) is Annotated else get_args(annotation)
    return tuple(dict.fromkeys(c for a in args for c in config_classes(a)))
