"""DeepSeek-V4's attention: one head that is both key and value, read over a window and over compressed history in one softmax.

    o_t = Rot_{-t} Σ_{c ∈ window_t ∪ entries_t} softmax_c(q_t · c / sqrt(D)) c,   with a sink per head in the softmax's denominator

Entry i condenses tokens i·m ... i·m + m - 1, per channel: C_i = norm(Σ_j softmax_j(Z_j + B_j) ⊙ K_j), (K, Z) = x (W_k, W_z), rotated as at
position i·m. HCA sees all entries. CSA has two series of (K, Z): entry i takes the first of the tokens of window i - 1 and the second of
those of window i, and a query sees those top_k entries that its indexer scores highest. A query t sees entry i only if i < ⌊(t+1)/m⌋.
Source: arXiv 2606.19348 §2.3.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from upslope.model.backends import BLOCK, Mask, core
from upslope.model.cache import Memory, Step
from upslope.model.config import CSA, RMS, Compressed, ModelConfig
from upslope.model.flow import Flow
from upslope.model.indexer import chosen, divergence, scores
from upslope.model.linear import Linear, undrawn
from upslope.model.norm import RMSNorm, unit, wide
from upslope.model.rope import Angles, angles, rotate, softmax_scale

if TYPE_CHECKING:
    import numpy as np


class Compressor(nn.Module):
    """Tokens → entries of width `dim`; config.history gives the rate and, by its kind, one series of (K, Z) or two."""

    def __init__(self, config: Compressed, dim: int, d_model: int, device: torch.device | str | None = None) -> None:
        super().__init__()
        assert config.history is not None
        self.config, self.dim, self.rate = config, dim, config.history.rate
        self.series = 2 if isinstance(config.history, CSA) else 1
        self.kv = Linear(d_model, self.series * dim, device)
        self.gate = Linear(d_model, self.series * dim, device)
        self.position_bias = undrawn(self.rate, self.series * dim, device=device)
        self.kv_norm = RMSNorm(dim, RMS(eps=config.eps), device)

    def start(self, leaf: str, shape: tuple[int, ...], draw: np.random.Generator) -> Tensor:
        """A window's tokens count alike."""
        return torch.zeros(shape)

    def forward(self, x: Tensor) -> Tensor:
        """x (T, d) → (K, Z) of all series (T, 2 · series · dim)."""
        return wide(torch.cat((self.kv(x), self.gate(x)), -1))

    def entries(self, windows: Tensor, number: Tensor) -> Tensor:
        """windows (S, W, series · rate, 2 · series · dim): what entry number (S or 1, W) is made of → entries (S, W, dim), rotated."""
        k, z = windows.chunk(2, -1)
        z = z + self.position_bias.repeat(self.series, 1)
        if self.series == 2:
            (k, z), m = (y.unflatten(-1, (2, -1)) for y in (k, z)), self.rate
            k, z = (torch.cat((y[:, :, :m, 0], y[:, :, m:, 1]), 2) for y in (k, z))
            before = torch.arange(2 * m, device=z.device) < m
            z = z.masked_fill(((number == 0)[..., None] & before)[..., None], -math.inf)
        out: Tensor = self.kv_norm((k * z.softmax(2)).sum(2))
        at = angles((number * self.rate).expand(out.shape[:2]).flatten(), self.config.position, self.config.head_dim, out.dtype)
        return rotate(out.flatten(0, 1)[:, None], placed(at, self.config, self.dim)).view_as(out)


def placed(at: Angles, config: Compressed, dim: int) -> Angles:
    """The rotation `at` for heads of another width, as many channels of which rotate."""
    return at._replace(start=dim - at.cos.shape[-1] if config.position.part == "trailing" else 0)


class EntryIndexer(nn.Module):
    """CSA's choice: I(t, i) = Σ_j w_j(t) · relu(q_j(t) · k_i / sqrt(dim)) / sqrt(heads) over entries k_i of its own compressor."""

    def __init__(self, config: Compressed, history: CSA, d_model: int, device: torch.device | str | None = None) -> None:
        super().__init__()
        self.config, self.history = config, history
        self.compressor = Compressor(config, history.index_dim, d_model, device)
        self.q = Linear(config.q_latent, history.index_heads * history.index_dim, device)
        self.weights = Linear(d_model, history.index_heads, device)

    def forward(self, x: Tensor, latent: Tensor, at: Angles) -> Tensor:
        """x (T, d), the queries' latent (T, q_latent) → per head, query and weight (T, heads, dim + 1)."""
        h = self.history
        q = rotate(wide(self.q(latent)).unflatten(-1, (h.index_heads, h.index_dim)), placed(at, self.config, h.index_dim))
        return torch.cat((q, wide(self.weights(x))[..., None] * h.index_heads**-0.5), -1)


class Reading(NamedTuple):
    """A rectangle of queries and what they read.

    q (S, H, N, D) at columns t (S or 1, N) of their segments. kv (S, L, D), with its mask. entries of each compressor (S, W, D).
    asks (S, J, N, dim + 1): of the indexer. real (S, N): false on padding.
    """

    q: Tensor
    t: Tensor
    kv: Tensor
    mask: Mask
    entries: list[Tensor]
    asks: Tensor | None
    real: Tensor


def blocks_of(part: Reading, window: int) -> Reading:
    """A long rectangle as many short ones, each reading its own and the preceding block's kv: linear in N, but for the entries."""
    size, (rows, n) = max(window, BLOCK), (part.q.shape[0], part.q.shape[2])
    if n <= 2 * size:
        return part
    count = -(-n // size)
    more = count * size - n

    def cut(x: Tensor) -> Tensor:
        return F.pad(x, (0, 0, 0, more)).unflatten(2, (count, size)).transpose(1, 2).flatten(0, 1)

    kv = F.pad(part.kv, (0, 0, size, more)).unflatten(1, (count + 1, size))
    back = torch.arange(size, 2 * size)[:, None] - torch.arange(2 * size)
    hidden = ((back < 0) | (back >= window)).repeat(count, 1, 1)
    hidden[0, :, :size] = True
    return Reading(
        cut(part.q),
        torch.arange(count * size, device=kv.device).view(count, size).repeat(rows, 1),
        torch.cat((kv[:, :-1], kv[:, 1:]), 2).flatten(0, 1),
        kv.new_zeros(hidden.shape).masked_fill_(hidden.to(kv.device), -math.inf)[:, None].repeat(rows, 1, 1, 1),
        [e.repeat_interleave(count, 0) for e in part.entries],
        None if part.asks is None else cut(part.asks),
        F.pad(part.real, (0, more)).view(-1, size),
    )


class CompressedAttention(nn.Module):
    """The mixer. In a cache stand the window, the entries, and (K, Z) of the tokens that unfinished entries will be made of."""

    def __init__(self, config: Compressed, model: ModelConfig, layer: int, device: torch.device | str | None = None) -> None:
        super().__init__()
        self.config, self.layer, d_model = config, layer, model.d_model
        heads, dim, history, norm = config.heads, config.head_dim, config.history, RMS(eps=config.eps)
        self.q_a = Linear(d_model, config.q_latent, device)
        self.q_a_norm = RMSNorm(config.q_latent, norm, device)
        self.q_b = Linear(config.q_latent, heads * dim, device)
        self.kv = Linear(d_model, dim, device)
        self.kv_norm = RMSNorm(dim, norm, device)
        self.sinks = undrawn(heads, device=device)
        self.o_a = undrawn(config.groups, config.group_dim, heads * dim // config.groups, device=device)
        self.o = Linear(config.groups * config.group_dim, d_model, device)
        self.compressor = None if history is None else Compressor(config, dim, d_model, device)
        self.indexer = EntryIndexer(config, history, d_model, device) if isinstance(history, CSA) else None
        self.scale = dim**-0.5 * softmax_scale(config.position)

    def start(self, leaf: str, shape: tuple[int, ...], draw: np.random.Generator) -> Tensor | None:
        """Sinks of zero."""
        return torch.zeros(shape) if leaf == "sinks" else None

    def forward(self, x: Tensor, flow: Flow, memory: Memory | None = None) -> Tensor:
        """x (T, d) → (T, d); with a cache, the new tokens also see, and join, what their slots hold."""
        c = self.config
        at = flow.angles(c.position, c.head_dim)
        latent = self.q_a_norm(self.q_a(x))
        q = rotate(unit(self.q_b(latent).unflatten(-1, (c.heads, c.head_dim)), c.eps), at)
        kv = rotate(self.kv_norm(self.kv(x))[:, None], at)
        seen: list[Tensor] = []
        series, asks = None if self.compressor is None else self.compressor(x), None
        if self.indexer is not None and series is not None:
            with torch.set_grad_enabled(flow.wants("index") and torch.is_grad_enabled()):
                asks, keys = self.indexer(x.detach(), latent.detach(), at), self.indexer.compressor(x.detach())
            series = torch.cat((series, keys), -1)
        with torch.autocast(x.device.type, enabled=False):
            parts = self._parts(q, kv, series, asks, flow, memory)
            out = [self._read(part, flow, seen) for part in parts]
            whole = flow.packing.unpad(out) if memory is None or flow.step is None else flow.step.unpad(out[0])
            whole = rotate(whole, at.inverse())
        if seen and flow.aux is not None:
            flow.aux.saw_logit(self.layer, torch.stack(seen).amax(0))
        grouped = torch.einsum("tgi,goi->tgo", whole.flatten(1).unflatten(1, (c.groups, -1)), self.o_a)
        mixed: Tensor = self.o(grouped.flatten(1))
        return mixed

    def _parts(self, q: Tensor, kv: Tensor, series: Tensor | None, asks: Tensor | None, flow: Flow, memory: Memory | None) -> list[Reading]:
        """q (T, H, D), kv (T, 1, D), series (T, C), asks (T, J, dim + 1), by bucket, or against what their slots hold."""
        packing, step, none = flow.packing, flow.step, [None] * len(flow.packing.buckets)
        if memory is not None and step is not None:
            memory.append(step, "kv", kv[:, 0])
            window, mask = memory.window(step, "kv")
            new = torch.arange(step.shape[1])
            t, real = (y.to(q.device) for y in (step.begin[:, None] + new, new < step.counts[:, None]))
            entries = [] if series is None else self._remembered(step, memory, series)
            return [Reading(step.pad(q), t, window.to(q.dtype), mask, entries, asks if asks is None else step.pad(asks), real)]
        cut = none if series is None else packing.pad(series[:, None])
        asked = none if asks is None else packing.pad(asks)
        return [
            Reading(
                a, torch.arange(len(real[0]), device=q.device)[None], b[:, 0], "causal", [] if e is None else self._cut(e[:, 0]), i, real
            )
            for a, b, e, i, real in zip(packing.pad(q), packing.pad(kv), cut, asked, packing.real(q.device))
        ]

    def _read(self, part: Reading, flow: Flow, seen: list[Tensor]) -> Tensor:
        """What the queries of a part read, (S, H, N, D); leaves the indexer's loss in flow.aux."""
        c, h = self.config, self.config.history
        q, t, kv, mask, entries, asks, real = blocks_of(part, c.window) if part.entries and isinstance(part.mask, str) else part
        older, index = None, None
        if entries and h is not None:
            hidden = torch.arange(entries[0].shape[1], device=q.device) >= ((t + 1) // h.rate)[..., None]
            older = q.new_zeros(hidden.shape).masked_fill_(hidden, -math.inf)  # (S or 1, N, W)
            if asks is not None and isinstance(h, CSA):
                index = scores(asks[..., :-1], entries[1], asks[..., -1:])
                older = chosen(index, older, h.top_k) if h.stage == "sparse" else older.expand_as(index)
            if isinstance(mask, str):
                back = t[0, :, None] - t[0]
                mask = q.new_zeros(back.shape).masked_fill_((back < 0) | (back >= c.window), -math.inf)[None, None]
            elif mask is None:
                mask = q.new_zeros(1, 1, t.shape[1], kv.shape[1])
            mask = torch.cat([m.expand(len(q), -1, -1, -1) for m in (mask, older[:, None])], -1)
            kv = torch.cat((kv, entries[0]), 1)
        keys, logits = kv[:, None], seen if flow.wants("max_logit") else None
        lse: list[Tensor] | None = [] if self.indexer is not None and flow.wants("index") else None
        out = core(q, keys, keys, mask, flow.backend, logits, scale=self.scale, sinks=self.sinks, window=c.window, lse=lse)
        if lse and flow.aux is not None:
            loss = q.new_zeros(()) if older is None or index is None else self._loss(q, entries[0], older, index, lse[0], real)
            flow.aux.saw_index(self.layer, loss, int(real.sum()))
        rows, n = part.q.shape[0], part.q.shape[2]
        return out if len(out) == rows else out.unflatten(0, (rows, -1)).transpose(1, 2).flatten(2, 3)[:, :, :n]

    def _loss(self, q: Tensor, entries: Tensor, older: Tensor, index: Tensor, lse: Tensor, real: Tensor) -> Tensor:
        """Σ over real queries of KL(heads' summed attention over entries ‖ softmax(index)), zero where no entry is seen."""
        with torch.no_grad():
            heads = q @ entries.mT[:, None] * self.scale + older[:, None] - lse[..., None]  # (S, H, N, W)
            attention = heads.exp().sum(1)
            attention = attention / attention.sum(-1, keepdim=True).clamp(min=torch.finfo(q.dtype).tiny)
            none = (older == -math.inf).all(-1, keepdim=True)
        return (divergence(attention, index, older.masked_fill(none, 0.0)) * real).sum()

    def _compressors(self) -> list[Compressor]:
        """Of the keys, and of the indexer's keys where there is one."""
        own = [] if self.compressor is None else [self.compressor]
        return own if self.indexer is None else [*own, self.indexer.compressor]

    def _entries(self, windows: Tensor, number: Tensor) -> list[Tensor]:
        """windows (S, W, span, C) → the entries of each compressor (S, W, D)."""
        fs = self._compressors()
        return [f.entries(part, number) for f, part in zip(fs, windows.split([2 * f.series * f.dim for f in fs], -1))]

    def _cut(self, series: Tensor) -> list[Tensor]:
        """series (S, L, C) → the entries of its ⌊L / rate⌋ full windows; those that reach into padding are seen by no real token."""
        f = self._compressors()[0]
        count, span = series.shape[1] // f.rate, f.series * f.rate
        if count == 0:
            return []
        whole = F.pad(series[:, : count * f.rate], (0, 0, span - f.rate, 0))
        return self._entries(whole.unfold(1, span, f.rate).mT, torch.arange(count, device=series.device)[None])

    def _remembered(self, step: Step, memory: Memory, series: Tensor) -> list[Tensor]:
        """All entries of the step's slots (S, W, D), after those that series (T, C) completes have joined them."""
        f = self._compressors()[0]
        span, end = f.series * f.rate, (step.begin + step.counts) // f.rate
        first = step.begin // f.rate
        number = first[:, None] + torch.arange(int((end - first).max()))  # (S, J)
        if number.shape[1]:
            ring = memory.ring["tail"]
            assert ring is not None
            old, new = memory.read(step, "tail", ring).to(series.dtype), step.pad(series)
            at, begin = number[..., None] * f.rate + torch.arange(f.rate - span, f.rate), step.begin[:, None, None]
            place = torch.where(at < begin, at % ring, old.shape[1] + at - begin).clamp(max=old.shape[1] + new.shape[1] - 1)
            windows = torch.cat((old, new), 1)[torch.arange(len(place))[:, None, None], place]  # (S, J, span, C)
            done = number < end[:, None]
            slots = step.slots[:, None].expand_as(number)[done]
            for name, values in zip(("entries", "index"), self._entries(windows, number.to(series.device))):
                memory.write(name, slots, number[done], values[done])
        memory.append(step, "tail", series)
        return [memory.read(step, name, step.keys // f.rate).to(series.dtype) for name, _ in zip(("entries", "index"), self._compressors())]
