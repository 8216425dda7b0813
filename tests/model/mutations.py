"""Mutants of a model's description: every leaf that changes what is computed, changed alone. A test of parity must catch each."""

from __future__ import annotations

import typing
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch

from tests.model.parity import Case, build, our_logits, rebuilt, their_logits
from upslope.config import Config, UsageError, config_classes, dump, validated
from upslope.model.config import Attention, Layer, ModelConfig, Nothing, Rope, TopK, Yarn

TRAINING_ONLY = {
    "init": "tests/model/test_init.py::test_scheme_numbers_are_read",
    "balance": "tests/model/test_balance.py::test_each_population_as_by_its_definition",
    "z_loss": "tests/train/test_auxiliary.py::test_the_loss_is_the_sum_of_its_parts",
    "loss": "tests/train/test_auxiliary.py::test_the_loss_is_the_sum_of_its_parts",
    "mtp": "tests/train/test_auxiliary.py::test_the_loss_is_the_sum_of_its_parts",
    "context": "tests/conformance/test_engine.py::test_the_context_is_a_limit",
    "dt_max": "tests/model/test_linear_mixers.py::test_initial_values_of_mamba",
}
"""Leaves that logits do not depend on, each with the test that covers it. (Whether `balance` has a selection bias they do depend on.)"""

COARSE = frozenset(("original", "beta_fast", "beta_slow"))
"""Ends of YaRN's ramp, rounded to whole channels: of their mutants one must be caught, of all others each."""

UNMADE = {
    "mixer.kv": "below the layer, none keeps as many keys and values",
    "mixer.select": "without a latent of the queries there is no indexer",
    "norm": "a scaled residual wants the norm before",
}
"""Leaves that may have no other value in a case, with the rule of the grammar."""

ABSENT: dict[str, Any] = {
    "scaling": {"kind": "linear", "factor": 2.0},
    "value_dim": 3,
    "window": 3,
    "scale": 0.11,
    "softcap": 0.7,
    "logit_softcap": 0.7,
    "limit": 0.3,
    "latent": 7,
    "shared": {"kind": "swiglu", "hidden": 8},
    "qk_norm": {"eps": 0.1},
    "q_latent": 9,
    "select": {"kind": "indexer", "heads": 2, "dim": 6, "top_k": 3, "rope": {"kind": "rope"}},
    "history": {"kind": "hca", "rate": 3},
}
"""What to put where a config has nothing."""

KINDS: dict[str, Any] = {
    "rope": {"kind": "rope"},
    "nope": {"kind": "nope"},
    "lightning": {"kind": "lightning", "heads": 3, "head_dim": 5},
    "reuse": {"kind": "reuse"},
    "own": {"kind": "own"},
    "nothing": {"kind": "nothing"},
    "add": {"kind": "add"},
    "scaled": {"kind": "scaled", "mixer": (1.3, 1.0), "ffn": (1.0, 1.0)},
    "hyper": {"kind": "hyper"},
    "tied": {"kind": "tied"},
    "untied": {"kind": "untied"},
    "swiglu": {"kind": "swiglu", "hidden": 48},
    "relu2": {"kind": "relu2", "hidden": 48},
    "linear": {"kind": "linear", "factor": 2.0},
    "hca": {"kind": "hca", "rate": 3},
    "csa": {"kind": "csa", "index_heads": 2, "index_dim": 16, "top_k": 2},
    "hash": {"kind": "hash", "k": 2},
    "topk": {"kind": "topk", "k": 2},
}
"""A member of a union by its kind. Norms are left as they are but for the kind."""


Tree = dict[str, Any]


class Mutant(NamedTuple):
    """path: the leaf that was changed. value: to what."""

    path: str
    value: Any
    config: ModelConfig


def literals(cls: type[Config], name: str) -> tuple[Any, ...]:
    """The values that a field's Literal admits."""
    found: list[Any] = []
    stack = [typing.get_type_hints(cls)[name]]
    while stack:
        h = stack.pop()
        if typing.get_origin(h) is typing.Literal:
            found += typing.get_args(h)
        else:
            stack += typing.get_args(h)
    return tuple(found)


def inert(owners: Sequence[Any], name: str) -> bool:
    """Whether a field has nothing to act on, by the values of its neighbours."""
    owner = owners[-1]
    return (
        (isinstance(owner, TopK) and owner.groups == 1 and name in ("keep", "group_score"))
        or (isinstance(owner, Rope) and owner.fraction == 1 and name == "part")
        or (isinstance(owner, Yarn) and owner.temperature == "none" and name == "mscale")
    )


def other_literals(owners: Sequence[Any], name: str, item: str) -> tuple[Any, ...]:
    """The other words, without those that say the same: m on queries and keys, all of whose channels rotate, is m² on their products."""
    owner, others = owners[-1], tuple(v for v in literals(type(owners[-1]), name) if v != item)
    if name == "temperature" and any(isinstance(o, Attention) for o in owners) and owners[-2].fraction == 1:
        return tuple(v for v in others if {v, item} != {"rotation", "softmax"})
    return others if owner else ()


def other_kinds(owner: Config, name: str, item: Any) -> tuple[Any, ...]:
    """Other members of a field's union; of a norm, the same norm elsewhere."""
    others = [c for c in config_classes(type(owner).model_fields[name].rebuild_annotation()) if c is not type(item)]
    kinds = [k for c in others if (k := c.model_fields.get("kind")) is not None]
    if name == "norm":
        return tuple(dump(item) | {"kind": k.default} for k in kinds)
    return tuple(KINDS[k.default] for k in kinds if k.default in KINDS)


def numbers(name: str, item: float) -> tuple[Any, ...]:
    """Other values of a number: neighbours of a whole one, a factor up and down of another; a hundredfold eps."""
    if name == "fraction":
        return tuple(f for f in (0.25, 1 / 3, 0.4, 0.5, 2 / 3, 0.75) if f != item)
    if name == "groups":
        return tuple(n for n in range(1, 17) if n != item)
    if name == "original":
        return item // 2, item * 2
    if name.startswith("beta_"):
        return item * 1.5, item * 0.6, item * 4, item / 4
    if name.endswith("eps"):
        return (item * 100,)
    if name == "head_dim":
        return item - 1, item + 1, item + 4
    if isinstance(item, int):
        doubled = (
            (2 * item,) if name in ("heads", "experts", "rope_dim", "dim") else ()
        )  # a neighbour is no multiple of what must divide it
        return tuple(v for v in (item - 1, item + 1, *doubled) if v > 0)
    return item * 1.5, item * 0.6


def leaves(owners: tuple[Any, ...], path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], tuple[Any, ...]]]:
    """(path, values to try) for every leaf of the last owner."""
    value = owners[-1]
    for name in type(value).model_fields:
        item, here = getattr(value, name), (*path, name)
        if name == "balance":
            bias = any(b.kind == "bias" for b in item)
            yield here, ((),) if bias else (({"kind": "bias"},),)
        if name in TRAINING_ONLY or name in ("kind", "pattern", "blocks") or inert(owners, name):
            continue
        if item is None:
            yield here, (ABSENT[name],)
        elif isinstance(item, bool):
            yield here, (not item,)
        elif isinstance(item, str):
            if others := other_literals(owners, name, item):
                yield here, others
        elif isinstance(item, int | float):
            yield here, numbers(name, item)
        elif isinstance(item, tuple):
            yield here, tuple(tuple(f * 1.2 if j == i else f for j, f in enumerate(item)) for i in range(len(item)))
        elif isinstance(item, Config):
            others = other_kinds(value, name, item)
            if name in ABSENT:
                others = (*others, None)
            if others:
                yield here, others
            yield from leaves((*owners, item), here)


def _with(tree: Any, path: tuple[str, ...], value: Any) -> Any:
    return value if not path else {**tree, path[0]: _with(tree[path[0]], path[1:], value)}


def _has(tree: Any, path: tuple[str, ...]) -> bool:
    return not path or (isinstance(tree, dict) and path[0] in tree and _has(tree[path[0]], path[1:]))


def _changed(config: ModelConfig, block: str, path: tuple[str, ...], value: Any, together: bool) -> ModelConfig | None:
    """The config with a leaf of a block changed: in that block; where that is no model, in all blocks; else in its topmost layer alone.

    together: in all blocks first.
    """
    tree = everywhere = dump(config)
    for name in config.blocks:
        if _has(tree["blocks"][name], path):
            everywhere = _with(everywhere, ("blocks", name, *path), value)
    names = [name for name, repeat in config.pattern for _ in range(repeat)]
    top = len(names) - 1 - names[::-1].index(block)
    alone = {**tree, "blocks": {**tree["blocks"], "alone": _with(tree["blocks"][block], path, value)}}
    alone["pattern"] = [*names[:top], "alone", *names[top + 1 :]]
    there = _with(tree, ("blocks", block, *path), value)
    for changed in (everywhere, there) if together else (there, everywhere, alone):
        try:
            return validated(ModelConfig, changed, "mutant")
        except UsageError:
            continue
    return None


def mutants(config: ModelConfig, scalings: Sequence[Tree] = (), together: bool = False) -> Iterator[Mutant | str]:
    """All mutants that are models; a path alone where no value tried makes one.

    scalings: further ones to try for every rope. together: a leaf is changed in all blocks at once that have it.
    """
    made: dict[str, list[Mutant]] = {}
    for path, values in leaves((config,)):
        found = made.setdefault(".".join(path), [])
        for value in values:
            try:
                found.append(Mutant(".".join(path), value, validated(ModelConfig, _with(dump(config), path, value), "mutant")))
            except UsageError:
                continue
    for block, layer in config.blocks.items():
        for path, values in leaves((layer,)):
            name = ".".join(("blocks", block, *path))
            values = (*values, *scalings) if path[-1] == "scaling" else values
            changed = [(value, _changed(config, block, path, value, together)) for value in values if not _void(layer, path, value)]
            made[name] = [Mutant(name, value, c) for value, c in changed if c is not None]
    for name, found in made.items():
        yield from found
        if not found:
            yield name
    names = [name for name, repeat in config.pattern for _ in range(repeat)]
    for i in range(len(names) - 1):
        swapped = (*names[:i], names[i + 1], names[i], *names[i + 2 :])
        if names[i] != names[i + 1]:
            try:
                yield Mutant("pattern", swapped, config.replace(pattern=swapped))
            except UsageError:
                continue


def _void(layer: Layer, path: tuple[str, ...], value: Any) -> bool:
    """A block of nothing at all is no mutant."""
    return value == KINDS["nothing"] and isinstance(layer.ffn if path == ("mixer",) else layer.mixer, Nothing)


class Verdict(NamedTuple):
    """total: leaves. loading, logits: mutants caught by either. survivors: (path, value, difference) of mutants that went unnoticed.

    unmade: paths of which no other value makes a model.
    """

    total: int
    loading: int
    logits: int
    survivors: tuple[tuple[str, Any, float], ...]
    unmade: tuple[str, ...]


@torch.no_grad()
def judge(case: Case, threshold: float) -> Verdict:
    """A mutant is caught if it does not load, or moves some logit by more than `threshold` from the oracle's."""
    pair = build(case)
    oracle = their_logits(pair.theirs)
    paths: set[str] = set()
    unmade: list[str] = []
    missed: list[tuple[str, Any, float]] = []
    caught: set[str] = set()
    loading = logits = 0
    for mutant in mutants(pair.ours.config):
        if isinstance(mutant, str):
            unmade.append(mutant)
            continue
        paths.add(mutant.path)
        try:
            off = float((our_logits(rebuilt(case, mutant.config)) - oracle).abs().max())
        except UsageError:
            loading, caught = loading + 1, caught | {mutant.path}
            continue
        if off < threshold:
            missed.append((mutant.path, mutant.value, off))
        else:
            logits, caught = logits + 1, caught | {mutant.path}
    survivors = tuple(m for m in missed if m[0].rpartition(".")[2] not in COARSE or m[0] not in caught)
    return Verdict(len(paths), loading, logits, survivors, tuple(unmade))
