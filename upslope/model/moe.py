"""Mixture of experts, dropless: y = shared(x) + Σ_{i chosen} g_i expert_i(x).

Choices are sorted by expert, each expert runs once over its rows, and the results go back by a gather. With `latent`, routed experts work
between one down- and one up-projection. Sources: DeepSeekMoE arXiv 2401.06066; dropless arXiv 2211.15841; LatentMoE arXiv 2601.18089.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from upslope.model.aux import RouterStats
from upslope.model.config import BiasBalance, Gated, Hashed, ModelConfig, MoE, Relu2
from upslope.model.ffn import ffn_of, gate
from upslope.model.flow import Flow
from upslope.model.linear import Linear, undrawn
from upslope.model.norm import wide
from upslope.model.router import Routes, route


class _ToExperts(torch.autograd.Function):
    """Rows of x by choice, in the order of experts; the gradient is gathered per token instead of scattered."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, token: Tensor, place: Tensor) -> Tensor:
        ctx.save_for_backward(place)
        return x.index_select(0, token)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (place,) = ctx.saved_tensors  # (T, k)
        total = grads[0].index_select(0, place[:, 0])
        for column in place.unbind(1)[1:]:
            total += grads[0].index_select(0, column)
        return total, None, None


class _FromExperts(torch.autograd.Function):
    """Σ_j w_tj y[place_tj]: the weighted sum of each token's rows."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, weights: Tensor, place: Tensor, order: Tensor) -> Tensor:
        ctx.save_for_backward(y, weights, place, order)
        total = y.index_select(0, place[:, 0]) * weights[:, :1]
        for j in range(1, place.shape[1]):
            total.addcmul_(y.index_select(0, place[:, j]), weights[:, j, None])
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None]:
        y, weights, place, order = ctx.saved_tensors
        (grad,) = grads
        rows = grad.index_select(0, order // place.shape[1])  # (T·k, d), in the order of experts
        by_expert = weights.flatten().index_select(0, order)[:, None]
        grad_weight = (rows * y).sum(-1).index_select(0, place.flatten()).view_as(weights)
        return rows.mul_(by_expert) if rows.dtype == y.dtype else (rows * by_expert).to(y.dtype), grad_weight, None, None


class Experts(nn.Module):
    """The routed experts as stacks (E, out, in): gate, up and down, or up and down; with biases (E, out) where the config has them."""

    def __init__(self, count: int, config: Gated | Relu2, width: int, device: torch.device | str | None = None) -> None:
        super().__init__()
        self.config, hidden = config, config.hidden
        gated, biased = isinstance(config, Gated), isinstance(config, Gated) and config.bias
        self.gate = undrawn(count, hidden, width, device=device) if gated else None
        self.up = undrawn(count, hidden, width, device=device)
        self.down = undrawn(count, width, hidden, device=device)
        self.gate_bias = undrawn(count, hidden, device=device) if biased else None
        self.up_bias = undrawn(count, hidden, device=device) if biased else None
        self.down_bias = undrawn(count, width, device=device) if biased else None

    def start(self, leaf: str, shape: tuple[int, ...], rng: np.random.Generator) -> Tensor | None:
        """Biases start at zero, matrices as the scheme says."""
        return torch.zeros(shape) if leaf.endswith("bias") else None

    def forward(self, x: Tensor, counts: list[int]) -> Tensor:
        """x (Σ counts, width), the rows of expert 0 first → the same shape."""
        gates = (None,) * len(counts) if self.gate is None else self.gate.unbind()
        ups, downs = self.up.unbind(), self.down.unbind()
        out = []
        for i, rows in enumerate(x.split(counts)):
            if not counts[i]:
                continue
            g, config = gates[i], self.config
            up = F.linear(rows, ups[i], None if self.up_bias is None else self.up_bias[i])
            if isinstance(config, Gated) and g is not None:
                hidden = gate(config, F.linear(rows, g, None if self.gate_bias is None else self.gate_bias[i]), up)
            else:
                hidden = F.relu(up).square()
            out.append(F.linear(hidden, downs[i], None if self.down_bias is None else self.down_bias[i]))
        return torch.cat(out)


class MixtureOfExperts(nn.Module):
    """Router, experts, shared expert, latent projections.

    select_bias (E,): moves selection only, a buffer that exists where the balance has a bias term. table (vocab, k): experts per token id.
    """

    select_bias: Tensor | None
    table: Tensor | None

    def __init__(self, config: MoE, model: ModelConfig, layer: int, device: torch.device | str | None = None) -> None:
        super().__init__()
        self.config, self.layer, d = config, layer, model.d_model
        self.router = Linear(d, config.experts, device, config.router.bias)
        width = config.latent or d
        self.experts = Experts(config.experts, config.expert, width, device)
        self.latent_down = None if config.latent is None else Linear(d, width, device)
        self.latent_up = None if config.latent is None else Linear(width, d, device)
        self.shared = None if config.shared is None else ffn_of(config.shared, d, device)
        biased = any(isinstance(b, BiasBalance) for b in config.balance)
        self.register_buffer("select_bias", torch.zeros(config.experts, device=device) if biased else None)
        select = config.router.select
        shape = (model.vocab, select.k)
        self.register_buffer("table", torch.zeros(shape, dtype=torch.long, device=device) if isinstance(select, Hashed) else None)

    def start(self, leaf: str, shape: tuple[int, ...], rng: np.random.Generator) -> Tensor:
        """No selection bias; a table of k different experts per token id, every expert equally often on average."""
        if leaf == "select_bias":
            return torch.zeros(shape)
        return torch.from_numpy(rng.random((shape[0], self.config.experts)).argsort(1)[:, : shape[1]])

    def forward(self, x: Tensor, flow: Flow) -> Tensor:
        """x (T, d) → (T, d)."""
        with torch.autocast(x.device.type, enabled=False):
            fp32 = wide(x)
            logits = F.linear(fp32, self.router.weight.to(fp32.dtype), self.router.bias)
            routes = route(logits, self.config.router, self.select_bias, None if self.table is None else self.table[flow.ids])
        counts = torch.bincount(routes.chosen.flatten(), minlength=self.config.experts)
        if flow.aux is not None and flow.wants("router"):
            flow.aux.saw_router(self.layer, self._stats(routes, flow))
        order = routes.chosen.flatten().argsort(stable=True)  # choices (t, j) flat, by expert
        place = torch.empty_like(order)
        place[order] = torch.arange(len(order), device=order.device)
        place = place.view_as(routes.chosen)
        inner = x if self.latent_down is None else self.latent_down(x)
        rows = _ToExperts.apply(inner, order // place.shape[1], place)
        y = self.experts(rows, counts.tolist())
        out: Tensor = _FromExperts.apply(y, routes.weights.to(y.dtype), place, order)
        if self.latent_up is not None:
            out = self.latent_up(out)
        return out if self.shared is None else out + self.shared(x)

    def _stats(self, routes: Routes, flow: Flow) -> RouterStats:
        """Sums over each segment of what the balance terms read."""
        lengths = flow.packing.lengths.to(routes.scores.device)
        segments, experts = len(lengths), self.config.experts
        row = torch.repeat_interleave(torch.arange(segments, device=lengths.device), lengths)
        cell = row[:, None] * experts + routes.chosen
        counts = torch.bincount(cell.flatten(), minlength=segments * experts).view(segments, experts).to(routes.scores.dtype)
        probs = routes.scores / routes.scores.sum(-1, keepdim=True)
        summed = probs.new_zeros(segments, experts).index_add(0, row, probs)
        square = probs.new_zeros(segments).index_add(0, row, torch.logsumexp(routes.logits, -1).square())
        return RouterStats(counts, summed, square, lengths, routes.chosen.shape[1])
