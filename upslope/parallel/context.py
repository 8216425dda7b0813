"""Context parallelism: the tokens of a part are cut into contiguous pieces, one per rank of the axis, also where they do not divide.

Embedding, norms, FFNs and experts see their piece. Softmax attention with grouped queries sees all tokens and a part of the heads, by an
all-to-all on the way in and one on the way back (Ulysses, arXiv 2309.14509); where key-value heads are too few for that, they are repeated.
Every other mixer, and attention whose heads do not divide, gathers the tokens, runs whole and keeps its own piece.

What a caller sees does not change: the model takes the whole part (T,) and returns the whole hidden states (T, d), equal on every rank, and
side outputs are those of the whole part, also equal. So every rank computes the same loss, and with it the gradient of its own piece:
*the gradient of a parameter is the sum over the axis*. So that this holds, what all ranks repeat on whole hidden states has its parameters'
gradient on the axis's first rank alone: the output matrix, where `logits` uses it, here; other heads by `repeated`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from upslope.config import UsageError
from upslope.model.attention import GQA
from upslope.model.aux import Aux, RouterStats
from upslope.model.block import Block
from upslope.model.flow import Flow
from upslope.model.mtp import Predictor
from upslope.model.packing import Packing
from upslope.model.transformer import Transformer
from upslope.parallel.comm import collect, exchange, gather_rows, once, part, reduce
from upslope.parallel.groups import Axis, Groups, spans
from upslope.parallel.sequence import apply_sequence
from upslope.parallel.tensor import AllHeads


def apply_context(model: nn.Module, groups: Groups) -> None:
    """Makes a model's modules work on this rank's piece of the tokens; after `apply_tensor`, whose heads are cut further, before FSDP.

    Blocks take tokens whole or cut, so that a pipeline may pass on pieces; the final norm's output is whole. No parameter is cut.
    Where the mesh says `sequence`, pieces are cut further over "tp" between its products, see `parallel.sequence`.
    """
    if groups["cp"].size > 1:
        _over_ranks(model, groups["cp"])
    apply_sequence(model, groups)


def _over_ranks(model: nn.Module, axis: Axis) -> None:
    attentions = [m for m in model.modules() if isinstance(m, GQA)]
    exchanged = all(m.config.heads % axis.size == 0 for m in attentions)  # together, since layers may read each other's keys
    for module in model.modules():
        if isinstance(module, Block):
            module.register_forward_pre_hook(_Piece(axis))
            if isinstance(module.mixer, GQA) and exchanged:
                _exchanging(module.mixer, axis)
            elif module.mixer is not None:
                object.__setattr__(module.mixer, "forward", _Whole(module.mixer, axis))
        elif isinstance(module, Predictor):
            module.register_forward_pre_hook(_Piece(axis))
            module.register_forward_hook(lambda m, args, out: tuple(gather_rows(x, axis) for x in out))
        elif isinstance(module, Transformer):
            if (last := getattr(module, "final_norm", None)) is not None:  # a stage of a pipeline may have none
                last.register_forward_hook(lambda m, args, out: gather_rows(out, axis))
            inner = module.projected
            object.__setattr__(module, "projected", lambda hidden, weight, inner=inner: inner(hidden, once(weight, axis)))


def repeated(module: nn.Module, groups: Groups) -> None:
    """Tells of a head outside the model that all ranks of "cp" run it on the same hidden states: its gradients count once in their sum."""
    first = groups["cp"].index == 0
    for p in module.parameters():
        p.register_hook(lambda grad: grad if first else torch.zeros_like(grad))


class _Shares(Packing):
    """How many tokens of each segment, none included, are in this rank's piece."""

    def __init__(self, lengths: Tensor, start: int, stop: int) -> None:
        ends = lengths.cumsum(0)
        self.lengths = ends.clamp(start, stop) - (ends - lengths).clamp(start, stop)
        self.tokens = stop - start


@dataclass(kw_only=True)
class Local(Flow):
    """What the layers share about this rank's piece; packing tells of its segments' shares. whole: the same about all tokens."""

    whole: Flow

    @classmethod
    def of(cls, flow: Flow, axis: Axis) -> Local:
        """The piece of a flow; of one pass always the same."""
        if isinstance(flow, Local):
            return flow
        if flow.step is not None:
            raise UsageError("cp: a model whose tokens are cut over ranks reads no cache\nway out: generate with cp = 1")
        if "piece" not in flow.shared:
            start, stop = axis.span(len(flow.ids))
            packing = _Shares(flow.packing.lengths, start, stop)
            aux = None if flow.aux is None else _Summed(flow.aux, axis, flow.packing.lengths)
            flow.shared["piece"] = cls(
                ids=flow.ids[start:stop],
                pos=flow.pos[start:stop],
                packing=packing,
                step=None,
                backend=flow.backend,
                aux=aux,
                dtype=flow.dtype,
                whole=replace(flow, shared={}),  # of its own, or what layers leave there would lie in a cycle
            )
        piece: Local = flow.shared["piece"]
        return piece


class _Summed(Aux):
    """Side outputs of a piece, handed on as those of the whole."""

    def __init__(self, outer: Aux, axis: Axis, lengths: Tensor) -> None:
        super().__init__(outer.wants)
        self.outer, self.axis, self.lengths = outer, axis, lengths

    def saw_logit(self, layer: int, largest: Tensor) -> None:
        """Already over all tokens and heads."""
        self.outer.saw_logit(layer, largest)

    def saw_router(self, layer: int, stats: RouterStats) -> None:
        """Sums over ranks; their gradient is equal on all, and each passes it to its own tokens."""
        experts = stats.counts.shape[1]
        flat = reduce(torch.cat((stats.counts, stats.probs, stats.square[:, None]), 1), self.axis)
        counts, probs, square = flat.split((experts, experts, 1), 1)
        self.outer.saw_router(layer, RouterStats(counts.detach(), probs, square[:, 0], self.lengths.to(stats.lengths.device), stats.k))

    def saw_index(self, layer: int, total: Tensor, tokens: int) -> None:
        """Computed whole by every rank, so its gradient counts once."""
        self.outer.saw_index(layer, once(total, self.axis), tokens)


class _Piece:
    """Before a module: of its inputs (..., flow, ...), tensors of all tokens are cut to the piece, and so is the flow."""

    def __init__(self, axis: Axis) -> None:
        self.axis = axis

    def __call__(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        flow = next(a for a in args if isinstance(a, Flow))
        local = Local.of(flow, self.axis)
        total = len(local.whole.ids)

        def cut(a: Any) -> Any:
            if a is flow:
                return local
            return part(a, self.axis, 0) if isinstance(a, Tensor) and len(a) == total else a

        return tuple(cut(a) for a in args)


class _Whole:
    """The forward pass of a mixer that sees all tokens, and keeps the piece."""

    def __init__(self, mixer: nn.Module, axis: Axis) -> None:
        self.run: Callable[..., Tensor] = mixer.forward
        self.axis = axis

    def __call__(self, x: Tensor, flow: Local, memory: None = None) -> Tensor:
        whole = collect(x, self.axis, 0, len(flow.whole.ids))
        return part(self.run(whole, replace(flow.whole, aux=flow.aux), None), self.axis, 0)


def _exchanging(mixer: GQA, axis: Axis) -> None:
    """Attention over all tokens by a part of the heads."""
    inner, sinks = mixer._attend, mixer.head_sinks
    c, heads = mixer.config, mixer.config.heads
    repeats = axis.size // math.gcd(c.kv_heads, axis.size)  # key-value heads become as many as divide

    def head_sinks() -> Tensor | None:
        mine = sinks()
        return None if mine is None else part(mine, axis, 0)

    def attend(q: Tensor, k: Tensor, v: Tensor, memory: None, flow: Local, narrow: torch.dtype) -> Tensor:
        tokens = [stop - start for start, stop in spans(len(flow.whole.ids), axis.size)]
        here = [tokens[axis.index]] * axis.size
        if repeats > 1:
            k, v = k.repeat_interleave(repeats, 1), v.repeat_interleave(repeats, 1)
        by_rank = [t.flatten(1).unflatten(1, (axis.size, -1)) for t in (q, k, v)]  # (T_r, ranks, heads of one · D)
        rows = exchange(torch.cat(by_rank, -1).transpose(0, 1).flatten(0, 1), axis, here, tokens)  # (T, ...)
        parts = rows.split([t.shape[-1] for t in by_rank], -1)
        qs, ks, vs = (p.unflatten(-1, (-1, t.shape[-1])) for p, t in zip(parts, (q, k, v)))
        aux = None if flow.aux is None else AllHeads(flow.aux, axis, heads)
        out = inner(qs, ks, vs, None, replace(flow.whole, aux=aux), narrow)  # (T, heads of one, E)
        back = exchange(out.flatten(1), axis, tokens, here).unflatten(0, (axis.size, -1))  # (ranks, T_r, heads of one · E)
        return back.transpose(0, 1).flatten(1).unflatten(-1, (heads, -1))

    object.__setattr__(mixer, "_attend", attend)
    object.__setattr__(mixer, "head_sinks", head_sinks)
