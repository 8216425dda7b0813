"""Mixture of experts, dropless: y = shared(x) + Σ_{i chosen} g_i expert_i(x).

Choices are sorted by expert and each expert runs once over its rows, small enough to stay in cache; sums over a token's choices are gathers
in both directions, so nothing is scattered. With `latent`, routed experts work between one down- and one up-projection.
Sources: DeepSeekMoE arXiv 2401.06066; dropless arXiv 2211.15841; LatentMoE arXiv 2601.18089.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from upslope.model.aux import RouterStats
from upslope.model.config import BiasBalance, Gated, Hashed, ModelConfig, MoE, Relu2
from upslope.model.ffn import ffn_of, gate
from upslope.model.flow import Flow
from upslope.model.linear import Linear, WideLinear, undrawn
from upslope.model.norm import wide
from upslope.model.router import Routes, route

if TYPE_CHECKING:
    import numpy as np


def _activated(config: Gated | Relu2, pre: Sequence[Tensor]) -> Tensor:
    """The hidden activations (n, hidden) from gate and up, or from up alone, in float32 or wider."""
    if isinstance(config, Gated):
        return gate(config, wide(pre[0]), wide(pre[1]))
    return F.relu(wide(pre[0])).square()


def _pullback(config: Gated | Relu2, pre: Sequence[Tensor]) -> tuple[Tensor, Callable[[Tensor], Sequence[Tensor]]]:
    """The hidden activations, and the map from their gradient to those of gate and up (or up); written out for the commonest."""
    if isinstance(config, Gated) and config.act == "silu" and config.limit is None:
        g, up = pre
        act = F.silu(g)
        return act * up, lambda grad: (torch.ops.aten.silu_backward(grad * up, g), grad * act)
    with torch.enable_grad():
        leaves = [p.detach().requires_grad_() for p in pre]
        hidden = _activated(config, leaves)
    return hidden.detach(), lambda grad: torch.autograd.grad(hidden, leaves, grad)


class Sorted(NamedTuple):
    """A pass's choices in the order of experts. counts: per expert. choice (T·k,): each as t·k + j; place (T, k): where it stands."""

    counts: list[int]
    choice: Tensor
    place: Tensor

    @classmethod
    def of(cls, chosen: Tensor, experts: int) -> Sorted:
        """From the experts (T, k) of each token."""
        flat = chosen.flatten()
        choice = flat.argsort(stable=True)
        place = torch.empty_like(choice)
        place[choice] = torch.arange(len(choice), device=choice.device)
        return cls(torch.bincount(flat, minlength=experts).tolist(), choice, place.view_as(chosen))

    def runs(self) -> Iterator[tuple[int, slice]]:
        """(expert, its rows) of every expert that has any."""
        end = 0
        for i, count in enumerate(self.counts):
            end += count
            if count:
                yield i, slice(end - count, end)

    def per_token(self, rows: Tensor) -> Tensor:
        """rows (T·k, d) → their sums (T, d) over each token's k: a gather, where index_add would scatter."""
        return F.embedding_bag(self.place, rows, mode="sum")


def _product(a: Tensor, b: Tensor, out: Tensor) -> None:
    """out = a @ b, rounded to out's dtype."""
    if out.dtype == a.dtype:
        torch.mm(a, b, out=out)
    else:
        out.copy_(a @ b)


def _paired(matrices: Sequence[Any]) -> list[tuple[Tensor, Any]]:
    """(stack, its biases or None) of each projection, from one flat list."""
    return list(zip(matrices[::2], matrices[1::2]))


class _Routed(torch.autograd.Function):
    """Σ_j w_tj expert_{e_tj}(x_t), forward and backward an expert at a time.

    Autograd's graph of the same would keep copies of the rows, stack the experts' gradients, and pass every intermediate through memory.
    matrices: per projection its stack (E, out, in) and its biases (E, out) or None, down last.
    """

    @staticmethod
    def forward(ctx: Any, config: Gated | Relu2, by: Sorted, x: Tensor, weights: Tensor, *matrices: Tensor | None) -> Tensor:
        device = x.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else wide(x).dtype
        *ins, (down, down_bias) = _paired(matrices)
        token, weight = by.choice // weights.shape[1], weights.flatten()[by.choice, None]  # (T·k,), (T·k, 1)
        pre = [x.new_empty(len(token), m.shape[1], dtype=dtype) for m, _ in ins]
        y = x.new_empty(len(token), down.shape[1], dtype=dtype)
        for i, at in by.runs():
            rows = x.index_select(0, token[at]).to(dtype)
            for p, (matrix, bias) in zip(pre, ins):
                torch.mm(rows, matrix[i].T.to(dtype), out=p[at])
                if bias is not None:
                    p[at] += bias[i]
            hidden = _activated(config, [p[at] for p in pre]) * weight[at]  # the weight goes in early, where rows are in cache
            torch.mm(hidden.to(dtype), down[i].T.to(dtype), out=y[at])
            if down_bias is not None:
                y[at] += weight[at] * down_bias[i]
        ctx.save_for_backward(token, x, weight, *matrices, *pre)
        ctx.config, ctx.by = config, by
        return by.per_token(y)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        token, x, weight, *rest = ctx.saved_tensors
        count = 6 if isinstance(ctx.config, Gated) else 4
        matrices, pre = rest[:count], rest[count:]
        to = [None if m is None else torch.empty_like(m) for m in matrices]
        *ins, (down, down_bias) = _paired(matrices)
        *to_ins, (to_down, to_down_bias) = _paired(to)
        dtype = pre[0].dtype
        to_rows, to_weights = x.new_empty(len(token), x.shape[1], dtype=dtype), torch.empty_like(weight)
        for t in to:
            if t is not None and 0 in ctx.by.counts:
                t[[i for i, count in enumerate(ctx.by.counts) if not count]] = 0
        for i, at in ctx.by.runs():
            rows, out = x.index_select(0, token[at]).to(dtype), grads[0].index_select(0, token[at]).to(dtype)
            hidden, pull = _pullback(ctx.config, [wide(p[at]) for p in pre])
            _product(out.T, (hidden * weight[at]).to(dtype), to_down[i])
            to_hidden = wide(out @ down[i].to(dtype))
            to_weights[at] = (to_hidden * hidden).sum(1, keepdim=True)
            if down_bias is not None:
                torch.sum(wide(out) * weight[at], 0, out=to_down_bias[i])
                to_weights[at] += wide(out) @ down_bias[i, :, None]
            to_pre = [g.to(dtype) for g in pull(to_hidden.mul_(weight[at]))]
            for j, (g, (matrix, bias)) in enumerate(zip(to_pre, ins)):
                _product(g.T, rows, to_ins[j][0][i])
                if bias is not None:
                    torch.sum(wide(g), 0, out=to_ins[j][1][i])
                if j == 0:
                    torch.mm(g, matrix[i].to(dtype), out=to_rows[at])
                else:
                    to_rows[at].addmm_(g, matrix[i].to(dtype))
        return None, None, ctx.by.per_token(to_rows).to(x.dtype), to_weights[:, 0][ctx.by.place], *to


class Product(Protocol):
    """rows (n, in) → (n, out): their product with the matrix (out, in) of an expert; leaf: the stack that it stands in."""

    def __call__(self, rows: Tensor, matrix: Tensor, leaf: str, expert: int) -> Tensor: ...


class Experts(nn.Module):
    """The routed experts as stacks (E, out, in): gate, up and down, or up and down; with biases (E, out) where the config has them.

    product: takes the place of the plain product with each matrix; its gradients are autograd's, so it costs memory.
    """

    product: Product | None = None

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

    def forward(self, x: Tensor, routes: Routes) -> Tensor:
        """x (T, width) → the weighted sums (T, width) over each token's experts."""
        by = Sorted.of(routes.chosen, len(self.up))
        if self.product is not None:
            return self._each(self.product, by, x, routes.weights)
        out: Tensor = _Routed.apply(self.config, by, x, routes.weights, *self.matrices())
        return out

    def _each(self, product: Product, by: Sorted, x: Tensor, weights: Tensor) -> Tensor:
        """What `_Routed` computes, by another product; as there, a choice's weight goes in before the last one."""
        device = x.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else wide(x).dtype
        token, weight = by.choice // weights.shape[1], weights.flatten()[by.choice, None]
        names = ("up",) if self.gate is None else ("gate", "up")
        done, last = [wide(x[:0])], self.matrices()[-1]
        for i, at in by.runs():
            rows, pre = x.index_select(0, token[at]), []
            for name in names:
                bias = getattr(self, f"{name}_bias")
                y = product(rows, getattr(self, name)[i], name, i)
                pre.append(y if bias is None else y + bias[i])
            y = wide(product(_activated(self.config, pre) * weight[at], self.down[i], "down", i))
            done.append(y if last is None else y + weight[at] * last[i])
        return by.per_token(torch.cat(done)).to(dtype)

    def matrices(self) -> list[Tensor | None]:
        """Each projection's stack and its biases, down last."""
        first = [] if self.gate is None else [self.gate, self.gate_bias]
        return [*first, self.up, self.up_bias, self.down, self.down_bias]


class MixtureOfExperts(nn.Module):
    """Router, experts, shared expert, latent projections.

    select_bias (E,): moves selection only, a buffer that exists where the balance has a bias term. table (vocab, k): experts per token id.
    `latent_up` is no "out" to the init schemes: the experts' `down` is, and two zero matrices in a row would never learn.
    """

    select_bias: Tensor | None
    table: Tensor | None

    def __init__(self, config: MoE, model: ModelConfig, layer: int, device: torch.device | str | None = None) -> None:
        super().__init__()
        self.config, self.layer, d = config, layer, model.d_model
        self.router = WideLinear(d, config.experts, device, config.router.bias)
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
            routes = route(self.router(x), self.config.router, self.select_bias, None if self.table is None else self.table[flow.ids])
        if flow.aux is not None and flow.wants("router"):
            flow.aux.saw_router(self.layer, self._stats(routes, flow))
        out: Tensor = self.experts(x if self.latent_down is None else self.latent_down(x), routes)
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
