"""Tokens over ranks, on gloo ranks against the whole model."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.parallel.cases import CASES, Found, Part, differences, gqa, made, model_of, too_far
from tests.parallel.support import distance, on_ranks
from upslope.config import UsageError
from upslope.model.aux import ALL
from upslope.model.cache import Cache
from upslope.model.config import Gated, Layer
from upslope.model.heads import ScalarHead
from upslope.parallel import comm
from upslope.parallel.config import Mesh
from upslope.parallel.context import apply_context, repeated
from upslope.parallel.groups import Groups

LENGTHS = (3, 9, 6, 1)  # cuts into 2 or 4 pieces fall within segments
WITH_TP = ("dense", "tied", "experts", "latent")
ONE = ("dense", "experts", "latent")
FUSED = ALL - {"max_logit"}
ODD = model_of({"a": Layer(mixer=gqa(heads=3, kv_heads=3, sinks=True), ffn=Gated(hidden=24))}, ("a",))
FEW = model_of({"a": Layer(mixer=gqa(heads=12, kv_heads=3, sinks=True), ffn=Gated(hidden=24))}, ("a",))


def head(groups: Groups) -> dict[str, float]:
    """A reward head outside the model: its gradients summed over the axis, and what it gives back to the model."""
    found = []
    for over in (False, True):
        model, scalar, part = made(CASES["tied"]), ScalarHead(16), Part(LENGTHS)
        torch.nn.init.ones_(scalar.weight)
        if over:
            apply_context(model, groups)
            repeated(scalar, groups)
        scalar(model(part.ids, part.seg)).square().sum().backward()
        grads = [p.grad for p in (*scalar.parameters(), *model.parameters())]
        found.append([comm.summed(g, groups["cp"]) if over else g for g in grads if g is not None])
    return {str(i): distance(b, a) * 1e-4 for i, (a, b) in enumerate(zip(*found))}  # the head is in float32


def cache(groups: Groups) -> str:
    model, part = made(CASES["tied"]), Part((3,))
    apply_context(model, groups)
    try:
        model(part.ids, cache=Cache(model.config, 1, 8).at([0]))
    except UsageError as e:
        return str(e)
    return ""


def on_two() -> dict[str, Any]:
    groups = Groups.of(Mesh(cp=2))
    found: dict[str, Any] = {name: differences(config, groups, LENGTHS) for name, config in CASES.items()}
    found |= {f"fused {name}": differences(CASES[name], groups, LENGTHS, FUSED) for name in ("dense", "tied")}
    found |= {f"one token {name}": differences(CASES[name], groups, (1,)) for name in ONE}
    return found | {"odd heads": differences(ODD, groups, LENGTHS), "head": head(groups), "cache": cache(groups)}


def on_four() -> dict[str, Any]:
    both, wide = Groups.of(Mesh(tp=2, cp=2)), Groups.of(Mesh(cp=4))
    found: dict[str, Any] = {f"tp {name}": differences(CASES[name], both, LENGTHS) for name in WITH_TP}
    found |= {
        "four dense": differences(CASES["dense"], wide, LENGTHS),
        "few kv": differences(FEW, wide, LENGTHS),
        "three tokens": differences(CASES["experts"], wide, (1, 2)),
    }
    return found | {"data": differences(CASES["dense"], Groups.of(Mesh(dp=2, cp=2)), LENGTHS)}


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Found:
    return on_ranks(2, on_two, tmp_path_factory.mktemp("cp2"))


@pytest.fixture(scope="module")
def four(tmp_path_factory: pytest.TempPathFactory) -> Found:
    return on_ranks(4, on_four, tmp_path_factory.mktemp("cp4"))


@pytest.mark.parametrize("case", [*CASES, "fused dense", "fused tied", *(f"one token {c}" for c in ONE), "odd heads"])
def test_two_pieces_say_and_learn_what_the_whole_does(two: Found, case: str) -> None:
    assert not too_far(two, case)


def test_a_head_outside_the_model_counts_once(two: Found) -> None:
    assert not too_far(two, "head")


@pytest.mark.parametrize("case", [*(f"tp {c}" for c in WITH_TP), "four dense", "few kv", "three tokens", "data"])
def test_on_four_ranks_and_with_other_axes(four: Found, case: str) -> None:
    assert not too_far(four, case)


def test_a_cache_is_refused(two: Found) -> None:
    assert all("cp: a model whose tokens are cut over ranks reads no cache" in str(rank["cache"]) for rank in two)
