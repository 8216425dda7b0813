"""Expert parallelism: every rank of the axis holds some of the experts, and sends each choice of its tokens to the rank that has it.

Dropless: rows go out by all-to-all in as uneven counts as they fall, none included, run through the experts there, and come back weighted:
y_t = Σ_j back(w_tj · expert(out(x_t))). The router, its statistics, selection bias and table stay whole on every rank and speak of its own
tokens. The gradient of a rank's experts holds all tokens of the axis already; it still adds up over `groups["replicas"]`.
Sources: GShard, arXiv 2006.16668; dropless: arXiv 2211.15841.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from upslope.config import UsageError
from upslope.model.moe import Experts, Sorted
from upslope.model.router import Routes
from upslope.parallel.comm import exchange
from upslope.parallel.groups import Axis, Groups
from upslope.parallel.table import TABLE, Placement, ShardingTable, apply


def apply_expert(model: nn.Module, groups: Groups, table: ShardingTable = TABLE) -> dict[str, Placement]:
    """Cuts the expert stacks over "ep" in place and sends tokens to them → the placements, of ep's cuts alone; before FSDP and optimizer.

    All ranks of the axis must run the same layers in the same order, as often as each other. UsageError where the experts do not divide,
    or the model has none.
    """
    axis, table = groups["ep"], table.only("ep")
    placements = table.placements(model, groups)
    if axis.size == 1:
        return placements
    stacks = [module for module in model.modules() if isinstance(module, Experts)]
    if not stacks:
        raise UsageError(f"ep = {axis.size}: the model has no experts\nway out: ep = 1")
    apply(model, placements)
    for stack in stacks:
        object.__setattr__(stack, "forward", _Sending(stack, axis))
    return placements


class _Sending:
    """The forward pass of experts of which this rank has a part: (x (T, width), routes) → (T, width)."""

    def __init__(self, stack: Experts, axis: Axis) -> None:
        self.stack, self.axis = stack, axis

    def __call__(self, x: Tensor, routes: Routes) -> Tensor:
        axis, own = self.axis, len(self.stack.up)
        device = x.device.type
        by = Sorted.of(routes.chosen, own * axis.size)
        counts = torch.tensor(by.counts, device=x.device).view(axis.size, own)  # (rank, its experts): rows that go there
        coming = torch.empty_like(counts)
        dist.all_to_all_single(coming, counts, group=axis.group)
        sent, taken = counts.sum(1).tolist(), coming.sum(1).tolist()
        if torch.is_autocast_enabled(device):
            x = x.to(torch.get_autocast_dtype(device))  # as the experts would read it
        rows = exchange(_Spread.apply(x, by), axis, sent, taken)
        weights = exchange(routes.weights.flatten()[by.choice, None], axis, sent, taken)
        expert = torch.arange(own, device=x.device).repeat(axis.size).repeat_interleave(coming.flatten())
        done = Experts.forward(self.stack, rows, routes._replace(chosen=expert[:, None], weights=weights))
        if len(rows) == 0:
            done = done + rows.sum() + weights.sum()  # zeros: the exchanges must be in the graph, or other ranks would wait for them
        out: Tensor = _Combine.apply(exchange(done, axis, taken, sent), by)
        return out


class _Spread(torch.autograd.Function):
    """x (T, d) → a row (T·k, d) per choice, in the order of experts; backward: the sum over each token's choices."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, by: Sorted) -> Tensor:
        ctx.by = by
        return x.index_select(0, by.choice // by.place.shape[1])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return ctx.by.per_token(grads[0].contiguous()), None


class _Combine(torch.autograd.Function):
    """Rows (T·k, d) in the order of experts → their sums (T, d) over each token's choices: the adjoint."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, by: Sorted) -> Tensor:
        ctx.by = by
        return by.per_token(rows)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0].index_select(0, ctx.by.choice // ctx.by.place.shape[1]), None
