"""Over all stages of all presets: each field that can change a result changes the fingerprint, each `Exec` field does not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from upslope.config import Config, Exec, FrozenDict, Input, Source, marks
from upslope.machine.identity import identity
from upslope.machine.stage import Stage
from upslope.recipes.load import load


def other(value: Any) -> Any:
    """Some other value of the same type."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1
    return value + "x" if isinstance(value, str) else 1


def changes(value: Any, path: str = "", execution: bool = False) -> Iterator[tuple[str, bool, Any]]:
    """(dotted path, whether it lies below an Exec field, the value with that one leaf changed), for every leaf."""
    if isinstance(value, Input):
        return  # counts by the fingerprint of what it names
    if isinstance(value, Config):
        for name in type(value).model_fields:
            if name == "kind":
                continue
            mark = execution or marks(type(value), name, Exec) is not None
            for where, below, changed in changes(getattr(value, name), f"{path}.{name}", mark):
                yield where, below, value.model_copy(update={name: changed})
    elif isinstance(value, Mapping):
        for key in value:
            for where, below, changed in changes(value[key], f"{path}.{key}", execution):
                yield where, below, FrozenDict({**value, key: changed})
    elif isinstance(value, tuple):
        for i, item in enumerate(value):
            for where, below, changed in changes(item, f"{path}.{i}", execution):
                yield where, below, (*value[:i], changed, *value[i + 1 :])
        if value and not isinstance(value[0], Input):
            yield f"{path}.shorter", execution, value[:-1]
    else:
        yield path, execution, other(value)


def stages() -> dict[str, Stage]:
    """Every stage of every preset that needs no argument."""
    return {f"{r}.{n}": s for r in ("tiny", "r1_tiny", "tulu3_tiny") for n, s in load(r).recipe.stages.items()}


@pytest.mark.parametrize("name", sorted(stages()))
def test_every_field_is_identity_unless_it_is_exec(name: str) -> None:
    stage = stages()[name]
    plain = identity(stage, {})
    seen = {plain}
    leaves = 0
    for path, execution, changed in changes(stage):
        fp = identity(changed, {})
        if execution:
            assert fp == plain, f"{path} is Exec, but changes the fingerprint"
        else:
            assert fp not in seen, f"{path} can change a result, but not the fingerprint"
            seen.add(fp)
        leaves += 1
    assert leaves > 0


def test_a_source_counts_by_its_digest_alone() -> None:
    here, there = Source(uri="a", digest="0"), Source(uri="b", digest="0")
    assert [c[:2] for c in changes(here)] == [(".uri", True), (".digest", False)]
    assert here != there
