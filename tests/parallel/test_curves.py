"""The main proof: on every mesh a run is the run of one process, loss for loss and weight for weight."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest

from tests.parallel.curves import Curve, batch_of, trained
from tests.parallel.support import distance, on_ranks
from tests.parallel.test_many import rank_of
from upslope.parallel.config import Mesh, Recompute

CLOSE = 1e-9
PAIRS = (Mesh(fsdp=2), Mesh(dp=2), Mesh(tp=2), Mesh(cp=2), Mesh(fsdp=2, ep=2))
FOURS = (
    Mesh(fsdp=4),
    Mesh(fsdp=4, zero=1),
    Mesh(dp=2, fsdp=2),
    Mesh(dp=2, fsdp=2, zero=2),
    Mesh(fsdp=2, tp=2),
    Mesh(fsdp=2, cp=2),
    Mesh(tp=2, cp=2),
    Mesh(fsdp=4, ep=2),
    Mesh(dp=2, fsdp=2, ep=2),
    Mesh(fsdp=2, tp=2, ep=2),
    Mesh(cp=2, fsdp=2, ep=4),
)
Key = tuple[str, str, str]


def curves(meshes: tuple[Mesh, ...], kinds: tuple[str, ...], optims: tuple[str, ...], steps: int) -> dict[Key, Curve]:
    """On this rank, by mesh, model and optimizer; experts are split only where there are any. Blocks recompute on some meshes."""
    return {
        (str(m), kind, optim): trained(kind, optim, m, steps, 14, Recompute() if m.cp > 1 or m.ep > 1 else None)
        for m in meshes
        for kind in kinds
        for optim in optims
        if m.ep == 1 or kind in ("moe", "mtp")
    }


@cache
def alone(kind: str, optim: str, steps: int) -> Curve:
    """The same in one process."""
    return trained(kind, optim, None, steps, micro=14)


def worst(found: Curve, truth: Curve) -> dict[str, float]:
    """Largest relative deviations of losses, norms and tensors of the state."""
    assert set(found.state) == set(truth.state)
    return {
        "loss": max(abs(a - b) / abs(b) for a, b in zip(found.losses, truth.losses, strict=True)),
        "norm": max(abs(a - b) / b for a, b in zip(found.norms, truth.norms, strict=True)),
        "state": max(distance(found.state[n], t) for n, t in truth.state.items()),
    }


def compare(meshes: tuple[Mesh, ...], kinds: tuple[str, ...], optims: tuple[str, ...], steps: int, folder: Path, seconds: float) -> None:
    """Every rank's curves against those of one process; prints the deviations."""
    ranks = on_ranks(meshes[0].ranks, curves, folder, meshes, kinds, optims, steps, seconds=seconds)
    for key, curve in ranks[0].items():
        assert all(r[key].losses == curve.losses and r[key].norms == curve.norms for r in ranks), key
        truth = alone(key[1], key[2], steps)
        assert max(truth.norms) > 0.5, "clipping must take part"
        found = worst(curve, truth)
        print(f"{key[0]:32} {key[1]:6} {key[2]:6}", *(f"{n} {v:.1e}" for n, v in found.items()))
        assert max(found.values()) <= CLOSE, (key, found)


def test_two_ranks(tmp_path: Path) -> None:
    """All side losses, Muon per head for matrices and AdamW for the rest, clipping, and parts without work among the micro-batches."""
    counts = [[len(at) for _, at in rank_of(i, 2).parts(batch_of(step), 14)] for step in range(3) for i in range(2)]
    assert any(0 in c for c in counts)
    assert max(map(len, counts)) > 2
    compare(PAIRS, ("mtp",), ("heads",), 3, tmp_path / "ranks", 100.0)


@pytest.mark.slow
@pytest.mark.parametrize("meshes", [PAIRS, FOURS], ids=["two", "four"])
def test_whole_matrix(meshes: tuple[Mesh, ...], tmp_path: Path) -> None:
    """Twenty steps of every model with every optimizer."""
    compare(meshes, ("dense", "moe", "mtp", "reuse"), ("adamw", "muon", "heads"), 20, tmp_path / "ranks", 3000.0)
