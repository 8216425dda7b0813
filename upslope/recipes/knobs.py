"""Every knob by its path, with the meaning that its class's docstring gives, its default, its source, and what each lab sets it to."""

from __future__ import annotations

import difflib
import re
import typing
from collections.abc import Iterator
from functools import cache
from typing import Any, NamedTuple

from pydantic_core import PydanticUndefined

from upslope.config import Config, UsageError, config_classes, kinds
from upslope.model.config import ModelConfig
from upslope.recipes.labs import PRESETS, get


class Knob(NamedTuple):
    """path: where it stands, unions entered by kind. cls, field: its home. type, default: in words; "" where it must be given."""

    path: str
    cls: type[Config]
    field: str
    type: str
    default: str

    @property
    def meaning(self) -> str:
        """From the docstring of its class."""
        return meaning(self.cls, self.field)

    @property
    def source(self) -> str:
        """From the docstring of its class."""
        return source(self.cls)


def kind_of(cls: type[Config]) -> str:
    """The `kind` of a member of a union or family; "" where it has none."""
    field = cls.model_fields.get("kind")
    kind = field.default if field is not None else getattr(cls, "kind", "")
    return kind if isinstance(kind, str) else ""


def _docs(cls: type[Config]) -> Iterator[str]:
    for base in cls.__mro__:
        if isinstance(base, type) and issubclass(base, Config) and base is not Config and base.__doc__:
            yield " ".join(base.__doc__.split())


@cache
def meaning(cls: type[Config], field: str) -> str:
    """What a field means: the sentence that starts with its name in the docstring of its class or of a base; "" where there is none."""
    stop = r"(?=(?:[.;] )(?:[a-z_]\w*(?:, [a-z_]\w*)*): |\.? ?(?:Sources?|Source of [^:]+): |$)"
    for doc in _docs(cls):
        found = re.search(rf"(?:^|[.;:)] )(?:[a-z_]\w*, )*{field}(?:, [a-z_]\w*)*: (.+?){stop}", doc, re.DOTALL)
        if found:
            return found[1].strip().rstrip(".")
    return ""


@cache
def source(cls: type[Config]) -> str:
    """The source that a class's docstring names."""
    for doc in _docs(cls):
        if found := re.search(r"Sources?: (.+?)(?=\. [a-z_]+(?:, [a-z_]+)*: |$)", doc):
            return found[1].strip().rstrip(".")
    return ""


def _words(annotation: Any) -> str:
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return _words(args[0])
    if origin is typing.Literal:
        return " | ".join(map(repr, args))
    if args and (origin is typing.Union or str(origin) == "<class 'types.UnionType'>"):
        return " | ".join("nothing" if a is type(None) else _words(a) for a in args)
    if origin is tuple:
        return f"list of {_words(args[0])}" if args else "nothing"
    if isinstance(annotation, type) and issubclass(annotation, Config):
        return kind_of(annotation) or annotation.__name__
    return getattr(annotation, "__name__", str(annotation))


def _default(info: Any) -> str:
    value = info.get_default(call_default_factory=True)
    if value is PydanticUndefined:
        return ""
    return kind_of(type(value)) or type(value).__name__ if isinstance(value, Config) else repr(value)


def walk(root: type[Config], path: str, seen: tuple[type, ...] = ()) -> Iterator[Knob]:
    """All knobs under a class. A union of several members adds the member's kind to the path."""
    hints = typing.get_type_hints(root, include_extras=True)
    for name, info in root.model_fields.items():
        if name == "kind":
            continue
        hint = hints[name]
        yield Knob(f"{path}.{name}", root, name, _words(hint), _default(info))
        members = config_classes(hint)
        for member in members:
            if member not in seen:
                inner = f"{path}.{name}" + (f".{kind_of(member) or member.__name__}" if len(members) > 1 else "")
                yield from walk(member, inner, (*seen, root))


@cache
def model_knobs() -> tuple[Knob, ...]:
    """Every knob of a model's description."""
    return tuple(walk(ModelConfig, "model"))


@cache
def knobs() -> tuple[Knob, ...]:
    """Every knob: of models, and of every kind of stage."""
    from upslope.machine.stage import Stage

    found = list(model_knobs())
    for kind, cls in sorted(kinds(Stage).items()):
        found += [k for k in walk(cls, kind) if ".model." not in k.path]
    return tuple(found)


def _squeeze(path: str) -> tuple[str, ...]:
    return tuple(w for w in path.replace("*", "").split(".") if w)


def lookup(name: str) -> tuple[Knob, ...]:
    """The knobs that a name means: a path, the end of one, or words of one in order. UsageError with the nearest where there is none."""
    wanted = _squeeze(name)
    exact = [k for k in knobs() if k.path == name]
    ends = [k for k in knobs() if _squeeze(k.path)[-len(wanted) :] == wanted]
    loose = [k for k in knobs() if k.field == wanted[-1] and _within(wanted, _squeeze(k.path))] if wanted else []
    found = exact or ends or loose
    if not found:
        near = difflib.get_close_matches(wanted[-1] if wanted else name, sorted({k.field for k in knobs()}), 4, 0.5)
        raise UsageError(
            f"nothing is called {name!r}\n" + (f"did you mean: {', '.join(near)}" if near else "`upslope presets` lists recipes")
        )
    homes: dict[tuple[type, str], Knob] = {}
    for knob in found:
        homes.setdefault((knob.cls, knob.field), knob)
    return tuple(homes.values())


def _within(words: tuple[str, ...], path: tuple[str, ...]) -> bool:
    rest = iter(path)
    return all(w in rest for w in words)


@cache
def uses(cls: type[Config], field: str) -> dict[str, tuple[str, ...]]:
    """Value → the labs' presets that set a field of a class to it, at real size."""
    found: dict[str, list[str]] = {}
    for name in PRESETS:
        values = dict.fromkeys(_spoken(getattr(c, field)) for c in _configs(get(name).model) if type(c) is cls)
        for value in values:
            found.setdefault(value, []).append(name)
    return {value: tuple(names) for value, names in found.items()}


def _spoken(value: Any) -> str:
    if isinstance(value, Config):
        return str(getattr(value, "kind", type(value).__name__))
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, tuple):
        return ", ".join(map(_spoken, value)) or "none"
    return str(value)


def _configs(value: Any) -> Iterator[Config]:
    """A config and all configs in it."""
    if isinstance(value, Config):
        yield value
        for name in type(value).model_fields:
            yield from _configs(getattr(value, name))
    elif isinstance(value, tuple):
        for item in value:
            yield from _configs(item)
    elif hasattr(value, "values"):
        for item in value.values():
            yield from _configs(item)
