"""Experts over ranks, on gloo ranks against the whole model."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.parallel.cases import CASES, Found, by_product, differences, made, too_far
from tests.parallel.support import on_ranks
from upslope.config import UsageError
from upslope.model.aux import ALL
from upslope.model.moe import MixtureOfExperts
from upslope.model.transformer import Transformer
from upslope.parallel.config import Mesh
from upslope.parallel.expert import apply_expert
from upslope.parallel.groups import Axis, Groups

LENGTHS = (3, 9, 6, 1)


def crowded(model: Transformer) -> None:
    """Every token goes to the first experts, all of one rank."""
    for m in model.modules():
        if isinstance(m, MixtureOfExperts) and m.select_bias is not None:
            m.select_bias[:2] += 1000.0
        elif isinstance(m, MixtureOfExperts) and m.table is not None:
            m.table.copy_(torch.arange(m.table.shape[1]).expand_as(m.table))


def crowded_by_product(model: Transformer) -> None:
    crowded(model)
    by_product(model)


def on_two() -> dict[str, Any]:
    groups, config = Groups.of(Mesh(fsdp=2, ep=2)), CASES["experts"]
    return {
        "split": differences(config, groups, LENGTHS),
        "crowded": differences(config, groups, LENGTHS, ALL, crowded),
        "product": differences(config, groups, LENGTHS, ALL, crowded_by_product),
        "few tokens": differences(config, groups, (1, 1)),
    }


def on_four() -> dict[str, Any]:
    config = CASES["experts"]
    return {
        "tp": differences(config, Groups.of(Mesh(fsdp=2, tp=2, ep=2)), LENGTHS),
        "cp": differences(config, Groups.of(Mesh(fsdp=2, cp=2, ep=4)), LENGTHS),
        "edp": differences(config, Groups.of(Mesh(fsdp=4, ep=2)), LENGTHS),
    }


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Found:
    return on_ranks(2, on_two, tmp_path_factory.mktemp("ep2"))


@pytest.fixture(scope="module")
def four(tmp_path_factory: pytest.TempPathFactory) -> Found:
    return on_ranks(4, on_four, tmp_path_factory.mktemp("ep4"))


@pytest.mark.parametrize("case", ["split", "crowded", "product", "few tokens"])
def test_experts_over_two_ranks_say_and_learn_what_they_do_on_one(two: Found, case: str) -> None:
    assert not too_far(two, case)


@pytest.mark.parametrize("case", ["tp", "cp", "edp"])
def test_together_with_other_axes(four: Found, case: str) -> None:
    assert not too_far(four, case)


def test_what_cannot_be_is_refused() -> None:
    def groups(ep: int) -> Groups:
        return Groups(Mesh(fsdp=ep, ep=ep), 0, "cpu", {"ep": Axis("ep", ep, 0, tuple(range(ep)), None)})

    with pytest.raises(UsageError, match="the model has no experts"):
        apply_expert(made(CASES["dense"]), groups(2))
    with pytest.raises(UsageError, match=r"experts\.gate: dimension 0 of 4 is not divisible by ep = 3"):
        apply_expert(made(CASES["experts"]), groups(3))
    with pytest.raises(UsageError, match="ep = 2 does not divide"):
        Groups.of(Mesh(ep=2))
