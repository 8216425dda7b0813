"""Grouped-query attention over packed segments, with and without a cache.

q, k, v come from x (T, d) by linear maps; per-head RMS norm of q and k (if configured), rotation, then per segment
    o_t = Σ_{s ≤ t} softmax_s(q_t · k_s / sqrt(D)) v_s,   head h reading key-value head ⌊h · kv_heads / heads⌋.
Sources: GQA arXiv 2305.13245; QK-norm arXiv 2309.14322.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from upslope.model.aux import Aux
from upslope.model.cache import KVCache, Step
from upslope.model.config import Attention, Rope
from upslope.model.linear import Linear
from upslope.model.norm import RMSNorm, wide
from upslope.model.packing import Packing
from upslope.model.rope import Angles, angles, rotate

Backend = Literal["sdpa", "eager"]


@dataclass
class Flow:
    """What all layers of one forward pass share. packing: of the new tokens. step: where they go in the cache, if there is one."""

    packing: Packing
    pos: Tensor
    step: Step | None
    backend: Backend
    aux: Aux | None
    dtype: torch.dtype
    _angles: dict[tuple[float, int], Angles]

    def angles(self, base: float, dim: int) -> Angles:
        """The rotations of this pass, computed once per (base, width)."""
        if (base, dim) not in self._angles:
            self._angles[base, dim] = angles(self.pos, base, dim, self.dtype)
        return self._angles[base, dim]


def core(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | Literal["causal"] | None, backend: Backend, seen: list[Tensor] | None = None
) -> Tensor:
    """Attention of q (S, H, N, D) over k, v (S, G, L, D), H a multiple of G → (S, H, N, D).

    mask: "causal" (N = L); additive, broadcastable to (S, H, N, L); or None = every key may be seen. backend: "sdpa", or "eager" =
    the formula as written, the reference that others are tested against. seen: takes the largest allowed logit per head (H,); runs "eager".
    """
    share = q.shape[1] // k.shape[1]
    if share > 1:
        k, v = k.repeat_interleave(share, 1), v.repeat_interleave(share, 1)
    if backend == "sdpa" and seen is None:
        if isinstance(mask, str):
            return F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    scores = q @ k.mT / math.sqrt(q.shape[-1])  # (S, H, N, L)
    if isinstance(mask, str):
        n = q.shape[2]
        mask = torch.full((n, n), -math.inf, device=q.device, dtype=q.dtype).triu(1)
    if mask is not None:
        scores = scores + mask
    if seen is not None:
        seen.append(scores.detach().amax((0, 2, 3)))
    return torch.softmax(scores, -1) @ v


class GQA(nn.Module):
    """The mixer. Scores and softmax run in float32 also under bf16 autocast: the CPU's bf16 backward kernel is 3-4 times slower."""

    def __init__(self, config: Attention, d_model: int, layer: int, device: torch.device | str | None = None) -> None:
        super().__init__()
        self.config, self.layer = config, layer
        heads, shared, dim = config.heads, config.kv_heads, config.head_dim
        self.q = Linear(d_model, heads * dim, device)
        self.k = Linear(d_model, shared * dim, device)
        self.v = Linear(d_model, shared * dim, device)
        self.o = Linear(heads * dim, d_model, device)
        norm = config.qk_norm
        self.q_norm = RMSNorm(dim, norm.eps, device) if norm else None
        self.k_norm = RMSNorm(dim, norm.eps, device) if norm else None

    def forward(self, x: Tensor, flow: Flow, cache: KVCache | None = None) -> Tensor:
        """x (T, d) → (T, d); with a cache, the new tokens also see, and join, what their slots hold."""
        c = self.config
        q, k, v = (wide(f(x)).unflatten(-1, (-1, c.head_dim)) for f in (self.q, self.k, self.v))  # (T, heads, D)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        if isinstance(c.position, Rope):
            at = flow.angles(c.position.base, c.head_dim)
            q, k = rotate(q, at), rotate(k, at)
        with torch.autocast(x.device.type, enabled=False):
            out = self._attend(q, k, v, flow, cache)
        mixed: Tensor = self.o(out.flatten(1))
        return mixed

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, flow: Flow, cache: KVCache | None) -> Tensor:
        seen: list[Tensor] | None = [] if flow.aux is not None else None
        packing, step = flow.packing, flow.step
        if cache is not None and step is not None:
            cache.append(step, k, v)
        if step is None or step.fresh:
            parts = zip(packing.pad(q), packing.pad(k), packing.pad(v))
            out = packing.unpad([core(a, b, c, "causal", flow.backend, seen) for a, b, c in parts])
        else:
            assert cache is not None
            keys, values = cache.read(step)
            out = step.unpad(core(step.pad(q), keys.to(q.dtype), values.to(q.dtype), step.mask, flow.backend, seen))
        if seen and flow.aux is not None:
            flow.aux.saw_logit(self.layer, torch.stack(seen).amax(0))
        return out
