"""Mamba-2: a state-space layer whose decay is a scalar per head and token, computed chunk by chunk.

    [z, x, B, C, Δ] = u W_in;  [x, B, C] = silu(conv([x, B, C]));  Δ = max(softplus(Δ + b_Δ), dt_min);  a_t = -exp(A_log) Δ_t
    H_t = e^{a_t} H_{t-1} + Δ_t x_t B_tᵀ;   y_t = H_t C_t + D x_t;   out = W_o( N(y ⊙ silu(z)) ), N per group of heads

Source: Dao & Gu 2024, arXiv 2405.21060; initial values: Nemotron-H, arXiv 2504.03624, and the released modelling code.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from upslope.model.cache import Memory
from upslope.model.config import Mamba2, ModelConfig
from upslope.model.flow import Flow
from upslope.model.linear import Linear, undrawn, vector
from upslope.model.norm import wide

if TYPE_CHECKING:
    import numpy as np

SCAN_CHUNK = 64  # tokens whose mutual weights are computed at once: changes rounding only
DT_FLOOR = 1e-4
States = dict[str, Tensor]


def decayed_scan(c: Tensor, b: Tensor, u: Tensor, log_a: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
    """y_t = S_t c_t with S_t = e^{a_t} S_{t-1} + u_t b_tᵀ; tokens with a = 0 and u = 0 leave the state as it is.

    Within a chunk ((C Bᵀ) ⊙ L) U, L_ij = e^{a_{j+1} + ... + a_i} for i ≥ j; from before it, C through the carried state.
    c, b (S, N, G, M), shared by the R heads of a group; u (S, N, G, R, P); log_a (S, N, G, R), none positive; state (S, G, R, P, M)
    before, None = zero → y (S, N, G, R, P), state after. Source: arXiv 2405.21060 §6.
    """
    length = u.shape[1]
    n = math.ceil(length / math.ceil(length / SCAN_CHUNK))  # chunks of like length: little padding
    c, b, u, log_a = (F.pad(t, (*(0, 0) * (t.ndim - 2), 0, -length % n)).unflatten(1, (-1, n)) for t in (c, b, u, log_a))
    c, b = c.transpose(2, 3), b.transpose(2, 3)  # (S, K, G, n, M)
    u, log_a = u.movedim(2, 4), log_a.movedim(2, 4)  # (S, K, G, R, n, P), (S, K, G, R, n)
    total = log_a.double().cumsum(-1)  # a small difference of two large sums
    away = (total[..., :, None] - total[..., None, :]).to(u.dtype)
    future = torch.ones(n, n, dtype=torch.bool, device=u.device).triu(1)
    y = ((c @ b.mT).unsqueeze(3) * away.masked_fill(future, -math.inf).exp()) @ u
    to_end, from_start = away[..., -1, :].exp(), total.to(u.dtype).exp()
    added = (u * to_end[..., None]).mT.flatten(3, 4) @ b  # (S, K, G, R P, M)
    heads, width = u.shape[3], u.shape[-1]
    after, before = None if state is None else state.flatten(2, 3), []
    for kept, new in zip(from_start[..., -1].unbind(1), added.unbind(1)):
        before.append(torch.zeros_like(new) if after is None else after)
        after = new if after is None else kept.repeat_interleave(width, 2)[..., None] * after + new
    assert after is not None
    if state is not None or len(before) > 1:
        carried = (c @ torch.stack(before, 1).mT).unflatten(-1, (heads, width)).movedim(4, 3)  # (S, K, G, R, n, P)
        y = y + carried * from_start[..., None]
    return y.movedim(4, 2).flatten(1, 2)[:, :length], after.unflatten(2, (heads, width))


def over_rows(flow: Flow, memory: Memory | None, run: Callable[..., tuple[Tensor, States]], *inputs: Tensor) -> Tensor:
    """A recurrence over each segment of flat inputs (T, H, D), from and to the cached states → (T, H, D).

    run: real (S, N), false on the right padding, the states before ({} = zero), inputs (S, H, N, D) → outputs (S, H, N, D), states after.
    """
    packing, step, device = flow.packing, flow.step, inputs[0].device
    if memory is None or step is None:
        parts = zip(packing.real(device), *(packing.pad(x) for x in inputs))
        return packing.unpad([run(real, {}, *padded)[0] for real, *padded in parts])
    real = (torch.arange(step.shape[1]) < step.counts[:, None]).to(device)
    before = {name: memory.state(step, name).to(inputs[0].dtype) for name in memory.spec}
    out, after = run(real, before, *(step.pad(x) for x in inputs))
    for name, value in after.items():
        memory.keep(step, name, value)
    return step.unpad(out)


class GroupedGatedNorm(nn.Module):
    """y ⊙ silu(z), RMS-normed within each group of channels, times a gain."""

    def __init__(self, width: int, groups: int, eps: float, device: torch.device | str | None = None) -> None:
        super().__init__()
        self.groups, self.eps = groups, eps
        self.weight = vector(torch.ones(width, device=device))

    def start(self, leaf: str, shape: tuple[int, ...], rng: np.random.Generator) -> Tensor:
        """A gain of one."""
        return torch.ones(shape)

    def forward(self, y: Tensor, z: Tensor) -> Tensor:
        """y, z (T, width) → (T, width)."""
        gated = (y * F.silu(z)).unflatten(-1, (self.groups, -1))
        return F.rms_norm(gated, gated.shape[-1:], None, self.eps).flatten(-2) * self.weight


class CausalConv(nn.Module):
    """A convolution of each channel with its own taps over the last tokens, the newest last; taps (channels · taps,), bias (channels,).

    Held flat, since the optimizer takes anything with two axes for a matrix.
    """

    def __init__(self, channels: int, taps: int, device: torch.device | str | None = None) -> None:
        super().__init__()
        self.taps = taps
        self.weight = undrawn(channels * taps, device=device)
        self.bias = undrawn(channels, device=device)

    def start(self, leaf: str, shape: tuple[int, ...], rng: np.random.Generator) -> Tensor:
        """Taps uniform in ± 1/sqrt(taps), no bias."""
        bound = self.taps**-0.5
        return torch.zeros(shape) if leaf == "bias" else torch.from_numpy(rng.uniform(-bound, bound, shape)).float()

    def forward(self, x: Tensor) -> Tensor:
        """x (S, channels, taps - 1 + N), the earlier tokens first → (S, channels, N)."""
        weight = self.weight.view(-1, 1, self.taps)
        return F.conv1d(x, weight, self.bias, groups=len(weight))


class Mamba2Mixer(nn.Module):
    """The mixer. Convolution, scan and states stay in float32 or wider."""

    def __init__(self, config: Mamba2, model: ModelConfig, layer: int, device: torch.device | str | None = None) -> None:
        super().__init__()
        self.config, d = config, model.d_model
        inner, shared = config.heads * config.head_dim, config.groups * config.state
        self.sizes = (inner, inner + 2 * shared, config.heads)
        self.in_proj = Linear(d, sum(self.sizes), device)
        self.conv = CausalConv(inner + 2 * shared, config.conv, device)
        self.A_log, self.D, self.dt_bias = (undrawn(config.heads, device=device) for _ in range(3))
        self.norm = GroupedGatedNorm(inner, config.groups, config.eps, device)
        self.o = Linear(inner, d, device)

    def start(self, leaf: str, shape: tuple[int, ...], rng: np.random.Generator) -> Tensor:
        """A uniform in [1, 16]; D = 1; Δ log-uniform in [dt_min, dt_max], not below 1e-4, through the inverse of softplus."""
        if leaf == "A_log":
            return torch.from_numpy(rng.uniform(1, 16, shape)).log().float()
        if leaf == "D":
            return torch.ones(shape)
        low, high = math.log(self.config.dt_min), math.log(self.config.dt_max)
        dt = torch.from_numpy(rng.uniform(low, high, shape)).exp().clamp(min=DT_FLOOR)
        return (dt + torch.log(-torch.expm1(-dt))).float()

    def forward(self, x: Tensor, flow: Flow, memory: Memory | None = None) -> Tensor:
        """x (T, d) → (T, d)."""
        z, xbc, dt = wide(self.in_proj(x)).split(self.sizes, -1)
        with torch.autocast(x.device.type, enabled=False):
            dt = F.softplus(dt + self.dt_bias).clamp(min=self.config.dt_min)
            y = over_rows(flow, memory, self._scan, xbc[:, None], dt[..., None])
            mixed = self.norm(y.flatten(1), z)
        out: Tensor = self.o(mixed)
        return out

    def _scan(self, real: Tensor, states: States, xbc: Tensor, dt: Tensor) -> tuple[Tensor, States]:
        """real (S, N), xbc (S, 1, N, channels) before the convolution, dt (S, H, N, 1) → y (S, H, N, P) and the states after."""
        c, raw = self.config, xbc[:, 0].mT
        early = states.get("conv")
        raw = F.pad(raw, (c.conv - 1, 0)) if early is None else torch.cat((early, raw), -1)
        last = real.sum(1)[:, None] + torch.arange(c.conv - 1, device=raw.device)  # (S, taps - 1): before a row's next token
        conv = raw.gather(-1, last[:, None].expand(-1, raw.shape[1], -1)) if states else raw
        shared = c.groups * c.state
        u, b, cc = (t.unflatten(-1, (c.groups, -1)) for t in F.silu(self.conv(raw)).mT.split((self.sizes[0], shared, shared), -1))
        u = u.unflatten(-1, (-1, c.head_dim))  # (S, N, G, R, P)
        dt = (dt[..., 0].mT * real[..., None]).unflatten(-1, (c.groups, -1))
        before = states.get("state")
        before = None if before is None else before.unflatten(1, (c.groups, -1))
        y, after = decayed_scan(cc, b, u * dt[..., None], -self.A_log.exp().view(c.groups, -1) * dt, before)
        y = (y + self.D.view(c.groups, -1, 1) * u).flatten(2, 3)
        return y.transpose(1, 2), {"conv": conv, "state": after.flatten(1, 2)}
