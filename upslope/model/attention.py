"""Grouped-query attention over packed segments, with and without a cache.

q, k, v come from x (T, d) by linear maps; RMS norm of q and k and rotation, as configured; then per segment
    o_t = Σ_s softmax_s(cap(a · q_t · k_s)) v_s over s ≤ t within the window, head h reading key-value head ⌊h · kv_heads / heads⌋,
gated by sigmoid(x W_g) if configured, and mapped back to (T, d). Sources: see `Attention` in `model.config`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from upslope.model.backends import Choice, Mask, Needs, core, resolve, varlen
from upslope.model.cache import Memory
from upslope.model.config import Attention, ModelConfig, Own, Rope
from upslope.model.flow import Backend, Flow
from upslope.model.linear import Linear, vector
from upslope.model.norm import RMSNorm, wide
from upslope.model.rope import Angles, rotate, softmax_scale

if TYPE_CHECKING:
    import numpy as np

KV = tuple[Tensor, Tensor, Memory | None]
"""What an own layer leaves in flow.shared["kv"]: keys (T, G, D) and values (T, G, E) of the new tokens, and where older ones are kept."""


class GQA(nn.Module):
    """The mixer. On a CPU, attention runs in float32 also under bf16 autocast, whose backward kernel is 3-4 times slower there."""

    def __init__(self, config: Attention, model: ModelConfig, layer: int, device: torch.device | str | None = None) -> None:
        super().__init__()
        self.config, self.layer, d_model = config, layer, model.d_model
        heads, shared, dim, value = config.heads, config.kv_heads, config.head_dim, config.value_width
        own, bias, norm = isinstance(config.kv, Own), config.bias != "none", config.qk_norm
        full = norm is not None and norm.over == "full"
        self.full, self.after = full, norm is not None and norm.place == "after"
        self.q = Linear(d_model, heads * dim, device, bias)
        self.k = Linear(d_model, shared * dim, device, bias) if own else None
        self.v = Linear(d_model, shared * value, device, bias) if own else None
        self.o = Linear(heads * value, d_model, device, config.bias == "all")
        self.gate = Linear(d_model, heads * value, device) if config.gate else None
        self.q_norm = RMSNorm(heads * dim if full else dim, norm, device) if norm else None
        self.k_norm = RMSNorm(shared * dim if full else dim, norm, device) if norm and own else None
        self.sinks = vector(torch.zeros(heads, device=device)) if config.sinks else None
        self.scale = config.scale or dim**-0.5
        if isinstance(config.position, Rope):
            self.scale *= softmax_scale(config.position)

    def start(self, leaf: str, shape: tuple[int, ...], draw: np.random.Generator) -> Tensor:
        """Sinks of zero."""
        return torch.zeros(shape)

    def head_sinks(self) -> Tensor | None:
        """The sinks (H,) of the heads that `_attend` is given."""
        return self.sinks

    def choice(self, backend: Backend, device: str, dtype: torch.dtype, grad: bool, max_logit: bool = False, flat: bool = True) -> Choice:
        """The backend of this layer for new tokens (flat) or over a cache, and why not a faster one."""
        c = self.config
        wider = c.value_width != c.head_dim
        needs = Needs(c.softcap is not None, c.sinks, flat and c.window is not None, wider, max_logit, False, flat, grad, dtype)
        return resolve(backend, device, needs)

    def forward(self, x: Tensor, flow: Flow, memory: Memory | None = None) -> Tensor:
        """x (T, d) → (T, d); with a cache, the new tokens also see, and join, what their slots hold."""
        position, dim = self.config.position, self.config.head_dim
        at = flow.angles(position, dim) if isinstance(position, Rope) else None
        q = self._placed(wide(self.q(x)), self.q_norm, at)
        if self.k is not None and self.v is not None:
            v = wide(self.v(x)).unflatten(-1, (-1, self.config.value_width))
            flow.shared["kv"] = self._placed(wide(self.k(x)), self.k_norm, at), v, memory
        kv: KV = flow.shared["kv"]
        narrow = torch.get_autocast_dtype("cuda") if x.is_cuda and torch.is_autocast_enabled("cuda") else q.dtype
        with torch.autocast(x.device.type, enabled=False):
            out = self._attend(q, *kv, flow, narrow).flatten(1)
        if self.gate is not None:
            out = out * torch.sigmoid(wide(self.gate(x)))
        mixed: Tensor = self.o(out)
        return mixed

    def _placed(self, x: Tensor, norm: RMSNorm | None, at: Angles | None) -> Tensor:
        """x (T, heads · D) normed and rotated, (T, heads, D)."""
        split = x.unflatten(-1, (-1, self.config.head_dim))  # (T, heads, D)
        if norm is not None and not self.after:
            split = norm(x).view_as(split) if self.full else norm(split)
        if at is not None:
            split = rotate(split, at)
        if norm is not None and self.after:
            split = norm(split.flatten(1)).view_as(split) if self.full else norm(split)
        return split

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, memory: Memory | None, flow: Flow, narrow: torch.dtype) -> Tensor:
        """q (T, H, D), k (T, G, D), v (T, G, E) → (T, H, E). narrow: what fused kernels compute in; the formula as written stays wide."""
        c, packing, step = self.config, flow.packing, flow.step
        seen: list[Tensor] | None = [] if flow.wants("max_logit") else None
        if memory is not None and step is not None and self.k is not None:
            memory.append(step, "k", k)
            memory.append(step, "v", v)
        flat = step is None or step.fresh
        grad = torch.is_grad_enabled() and any(t.requires_grad for t in (q, k, v))
        choice = self.choice(flow.backend, q.device.type, narrow, grad, seen is not None, flat)
        if narrow != q.dtype and choice.backend != "eager":
            q, k, v = q.to(narrow), k.to(narrow), v.to(narrow)

        def run(a: Tensor, b: Tensor, d: Tensor, mask: Mask) -> Tensor:
            return core(a, b, d, mask, choice, seen, scale=self.scale, softcap=c.softcap, sinks=self.head_sinks(), window=c.window)

        if choice.backend == "varlen":
            out = varlen(q, k, v, packing.lengths, self.scale, c.window)
        elif flat:
            parts = zip(packing.pad(q), packing.pad(k), packing.pad(v))
            out = packing.unpad([run(*part, "causal") for part in parts])
        else:
            assert memory is not None and step is not None
            (keys, mask), (values, _) = memory.window(step, "k", c.window), memory.window(step, "v", c.window)
            out = step.unpad(run(step.pad(q), keys.to(q.dtype), values.to(q.dtype), mask))
        if seen and flow.aux is not None:
            flow.aux.saw_logit(self.layer, torch.stack(seen).amax(0))
        return out
