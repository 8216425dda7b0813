"""Who trains on what: shares of a batch, parts without work, and sums over ranks."""

from __future__ import annotations

from typing import Any, cast

import pytest
import torch

from tests.parallel.curves import batch_of, model_of
from tests.train.support import batch as paired
from tests.train.support import model as dense_model
from tests.train.support import only
from upslope.parallel.assemble import Assembled
from upslope.parallel.config import Mesh
from upslope.parallel.gather import Layout
from upslope.parallel.groups import Axis, Groups
from upslope.parallel.table import TABLE
from upslope.train.batch import Batch
from upslope.train.losses import DPO, Imitate
from upslope.train.many import Many, shared_out
from upslope.train.ranks import Part


def rank_of(index: int, ranks: int, model: Any = None) -> Many:
    """One of several data ranks, without the others."""
    model = model or model_of("dense")
    alone = Groups.of(Mesh())
    data = Axis("data", ranks, index, tuple(range(ranks)), None)
    groups = Groups(Mesh(dp=ranks), index, "cpu", {**alone.axes, "data": data})
    return Many(Assembled(model, groups, Layout(model, TABLE.placements(model, alone), alone)))


def parts_of(batch: Batch, ranks: int, micro: int) -> list[list[Part]]:
    """Every rank's parts."""
    return [rank_of(i, ranks).parts(batch, micro) for i in range(ranks)]


@pytest.mark.parametrize("ranks", [1, 2, 3, 5])
@pytest.mark.parametrize("micro", [0, 9, 30])
def test_parts(ranks: int, micro: int) -> None:
    """Every segment is trained on once, in the part that says so; all ranks have equally many parts, and their totals are the batch's."""
    b = batch_of(1)
    every = parts_of(b, ranks, micro)
    assert len({len(parts) for parts in every}) == 1
    assert torch.cat([at for parts in every for _, at in parts]).sort().values.tolist() == list(range(b.segments))
    starts = b.lengths().cumsum(0) - b.lengths()
    for part, at in (p for parts in every for p in parts):
        part.check()
        assert len(at) in (0, part.segments)
        for k, segment in enumerate(at.tolist()):
            assert part.ids[part.seg == k].tolist() == b.ids[starts[segment] :][: int(b.lengths()[segment])].tolist()
    assert sum(float(part.totals().imitate) for parts in every for part, _ in parts) == b.totals().imitate
    loads = [sum(len(part) for part, at in parts if len(at)) for parts in every]
    assert max(loads) - min(loads) <= int(b.lengths().max())


def test_pairs_stay_together() -> None:
    """Both sides of a pair are in one part, and no other rank has them."""
    b = paired()
    every = parts_of(b, 2, 12)
    assert sum(float(part.totals().pairs) for parts in every for part, _ in parts) == 3
    for _, at in (p for parts in every for p in parts):
        assert all(s ^ 1 in at.tolist() for s in at.tolist())


def test_more_ranks_than_units() -> None:
    """A rank without any unit has as many parts as the others."""
    b = paired()
    every = parts_of(b, 5, 0)
    assert [len(parts) for parts in every] == [1] * 5
    assert sorted(len(parts[0][1]) for parts in every) == [0, 0, 2, 2, 2]
    assert [len(s) for s in shared_out(b, 5)] == [2, 2, 2, 0, 0]


@pytest.mark.parametrize("name", ["imitate", "pairs"])
def test_no_work(name: str) -> None:
    """A part without work gives a loss of zero whose gradient is zero, finite, and there."""
    model = dense_model()
    b = only(paired(), "imitate") if name == "imitate" else only(paired(), "imitate", "pairs", "ref")
    part, at = next(p for parts in parts_of(b, 7, 0) for p in parts if not len(p[1]))
    assert not len(at)
    assert len(part)
    loss: Any = Imitate() if name == "imitate" else DPO(beta=0.1)
    from upslope.train.head import read

    out = read(model(part.ids, part.seg, part.pos), part, loss.wants, model.logits)
    value, _ = loss(out, part, b.totals(), None)
    value.backward()
    assert float(value.detach()) == 0.0
    for n, p in model.named_parameters():
        assert p.grad is not None, n
        assert not bool(p.grad.count_nonzero()), n


def test_norm_of_one_rank() -> None:
    """Alone it is the norm of all gradients; sums, maxima and copies are the values themselves."""
    model = model_of("dense")
    many = rank_of(0, 1, model)
    grads = {n: torch.randn_like(p) for n, p in model.named_parameters()}
    truth = float(torch.cat([g.flatten() for g in grads.values()]).norm())
    assert abs(many.norm(grads) - truth) <= 1e-12 * truth
    assert many.together(2**63 + 5) == (2**63 + 5,)
    assert many.copies({"trainer.steps": torch.tensor(3)}) == {}
    assert cast(float, many.add({"a": torch.tensor(2.0)})["a"]) == 2.0
