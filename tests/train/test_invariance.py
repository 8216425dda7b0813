"""Loss and gradients over all columns do not depend on how a step is split, packed, padded or ordered: `benchmarks/train_invariance.py`."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch


def load() -> ModuleType:
    """The benchmark as a module; benchmarks are scripts, not a package."""
    spec = importlib.util.spec_from_file_location("train_invariance", Path(__file__).parents[2] / "benchmarks" / "train_invariance.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


BENCH = load()


@pytest.mark.parametrize("name", list(BENCH.models()))
def test_a_step_is_the_same_however_it_is_laid_out(name: str) -> None:
    found = BENCH.measure(name, torch.float64)
    assert {"split 1", "order", "pack", "pad"} <= set(found)
    for variant, row in found.items():
        assert row["loss"] <= 1e-10 and row["gradient"] <= 1e-10, (variant, row)


@pytest.mark.parametrize("name", list(BENCH.models()))
def test_the_distance_sees_a_column_that_changes(name: str) -> None:
    """Every column reaches the gradients, so that none of the invariances above holds for want of influence."""
    config, b = BENCH.models()[name], BENCH.batch(torch.float64)
    whole = BENCH.step(config, b, torch.float64)
    policy, distil = b.policy, b.distil
    changed = {
        "imitate": replace(b, imitate=b.imitate * (b.seg + 1)),
        "ref": replace(b, ref=b.ref - b.seg.new_tensor(range(b.segments)) * 0.3),
        "pairs": replace(b, pairs=b.pairs.flip(1)),
        "kept": replace(b, replay=None),
        "distil.rest": replace(b, distil=replace(distil, rest=distil.rest - 1)),
        "distil.logprobs": replace(b, distil=replace(distil, logprobs=distil.logprobs - 0.5)),
    }
    for column in ("advantage", "old", "sampled", "ref", "returns", "values"):
        changed[f"policy.{column}"] = replace(b, policy=replace(policy, **{column: getattr(policy, column) * 0.5}))
    for column, other in changed.items():
        assert BENCH.distance(whole, BENCH.step(config, other, torch.float64))["gradient"] > 1e-6, column
