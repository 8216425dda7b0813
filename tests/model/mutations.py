"""Mutants of a model's description: every leaf that changes what is computed, changed alone. A test of parity must catch each."""

from __future__ import annotations

import typing
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch

from tests.model.parity import Case, build, our_logits, rebuilt, their_logits
from upslope.config import Config, UsageError, dump, validated
from upslope.model.config import ModelConfig, Rope, TopK, Yarn

TRAINING_ONLY = {
    "init": "tests/model/test_init.py",
    "balance": "tests/model/test_balance.py",
    "z_loss": "tests/model/test_balance.py",
    "loss": "tests/model/test_mla.py",
    "mtp": "tests/model/test_mtp.py",
    "context": "tests/generate/test_local.py",
    "dt_max": "tests/model/test_linear_mixers.py",
}
"""Leaves that logits do not depend on, each with the test that covers it."""

ABSENT: dict[str, tuple[Any, ...]] = {
    "scaling": ({"kind": "linear", "factor": 2.0},),
    "value_dim": (3,),
    "window": (3,),
    "scale": (0.11,),
    "softcap": (0.7,),
    "logit_softcap": (0.7,),
    "limit": (0.3,),
    "latent": (7,),
    "shared": ({"kind": "swiglu", "hidden": 8},),
    "qk_norm": ({"eps": 0.1},),
    "q_latent": (9,),
    "select": ({"kind": "reuse"},),
    "history": ({"kind": "hca", "rate": 3},),
}
"""What to put where a config has nothing."""

OTHER_KIND: dict[str, Any] = {
    "rope": {"kind": "nope"},
    "nope": {"kind": "rope"},
    "own": {"kind": "reuse"},
    "pre": {"kind": "post"},
    "post": {"kind": "pre"},
    "sandwich": {"kind": "pre"},
    "add": {"kind": "scaled", "mixer": (1.3, 1.0), "ffn": (1.0, 1.0)},
    "scaled": {"kind": "add"},
    "tied": {"kind": "untied"},
    "untied": {"kind": "tied"},
    "swiglu": {"kind": "relu2", "hidden": 48},
    "relu2": {"kind": "swiglu", "hidden": 48},
    "hyper": {"kind": "add"},
}
"""Another member of a union, where it can be made without more ado; it must be caught at loading or by the logits."""


class Mutant(NamedTuple):
    """path: the leaf that was changed. value: to what."""

    path: str
    value: Any
    config: ModelConfig


def _literals(cls: type[Config], name: str) -> tuple[Any, ...]:
    hint = typing.get_type_hints(cls)[name]
    found: list[Any] = []
    stack = [hint]
    while stack:
        h = stack.pop()
        if typing.get_origin(h) is typing.Literal:
            found += typing.get_args(h)
        else:
            stack += typing.get_args(h)
    return tuple(found)


def inert(owner: Any, name: str) -> bool:
    """Whether a field has nothing to act on, by the values of its neighbours."""
    return (
        (isinstance(owner, TopK) and owner.groups == 1 and name in ("keep", "group_score"))
        or (isinstance(owner, Rope) and owner.fraction == 1 and name == "part")
        or (isinstance(owner, Yarn) and owner.temperature == "none" and name == "mscale")
    )


def leaves(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], tuple[Any, ...]]]:
    """(path, values to try) for every leaf of a config."""
    for name in type(value).model_fields:
        item = getattr(value, name)
        here = (*path, name)
        if name in TRAINING_ONLY or name in ("kind", "pattern", "blocks") or inert(value, name):
            continue
        if item is None:
            yield here, ABSENT[name]
        elif isinstance(item, bool):
            yield here, (not item,)
        elif isinstance(item, str):
            yield here, tuple(v for v in _literals(type(value), name) if v != item)
        elif isinstance(item, int):
            yield here, tuple(v for v in (item - 1, item + 1, 2 * item) if v > 0)
        elif isinstance(item, float):
            yield here, (item * 1.5, item * 0.6, item * 20, item + 0.05, item + 2.0)
        elif isinstance(item, tuple):
            yield here, tuple(tuple(f * 1.2 if j == i else f for j, f in enumerate(item)) for i in range(len(item)))
        elif isinstance(item, Config):
            kind = getattr(item, "kind", None)
            if kind in OTHER_KIND:
                yield here, (OTHER_KIND[kind],)
            if name in ABSENT:
                yield here, (None,)
            yield from leaves(item, here)


def mutants(config: ModelConfig) -> Iterator[Mutant | str]:
    """All mutants that are valid descriptions; a path alone where every value tried is refused as a description."""
    tree = dump(config)
    found = [(p, v) for p, v in leaves(config)]
    for block, layer in config.blocks.items():
        found += [(("blocks", block, *p), v) for p, v in leaves(layer)]
    for path, values in found:
        valid = []
        for value in values:
            changed = _with(tree, path, value)
            try:
                valid.append(Mutant(".".join(path), value, validated(ModelConfig, changed, "mutant")))
            except UsageError:
                continue
        yield from valid or [".".join(path)]
    names = [name for name, repeat in config.pattern for _ in range(repeat)]
    swaps = [i for i in range(len(names) - 1) if names[i] != names[i + 1]]
    for i in swaps:
        swapped = [*names[:i], names[i + 1], names[i], *names[i + 2 :]]
        try:
            yield Mutant("pattern", tuple(swapped), config.replace(pattern=tuple(swapped)))
        except UsageError:
            continue


def _with(tree: Any, path: tuple[str, ...], value: Any) -> Any:
    if not path:
        return value
    return {**tree, path[0]: _with(tree[path[0]], path[1:], value)}


class Verdict(NamedTuple):
    """killed, total: leaves. survivors: paths none of whose mutants was noticed."""

    killed: int
    total: int
    survivors: tuple[str, ...]


@torch.no_grad()
def judge(case: Case, threshold: float) -> Verdict:
    """A leaf is killed if one of its mutants does not load, or moves some logit by more than `threshold` from the oracle's."""
    pair = build(case)
    oracle = their_logits(pair.theirs)
    noticed: dict[str, bool] = {}
    for mutant in mutants(pair.ours.config):
        if isinstance(mutant, str):
            noticed[mutant] = True  # no other value makes a description at all
            continue
        if noticed.get(mutant.path):
            continue
        try:
            logits = our_logits(rebuilt(case, mutant.config))
            caught = not float((logits - oracle).abs().max()) < threshold
        except (UsageError, ValueError):
            caught = True
        noticed[mutant.path] = noticed.get(mutant.path, False) or caught
    survivors = tuple(p for p, caught in noticed.items() if not caught)
    return Verdict(len(noticed) - len(survivors), len(noticed), survivors)
