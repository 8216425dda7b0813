"""A block: two halves, mixer and FFN, each normed as the config says and joined to the residual stream as the config says.

pre: x + f(N(x)); post: x + N(f(x)); sandwich: x + N'(f(N(x))); scaled: n = N(x), a·n + b·f(n); hyper-connections: see `model.hyper`.
Sources: arXiv 1706.03762, 2002.04745, 2501.00656 (post, inside the branch), 2408.00118 (sandwich), 2203.00555 (scaled).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from upslope.model.attention import GQA
from upslope.model.cache import Memory
from upslope.model.compressed import CompressedAttention
from upslope.model.config import (
    FFN,
    MLA,
    Attention,
    Compressed,
    HyperConnections,
    Layer,
    Lightning,
    Mamba2,
    Mixer,
    ModelConfig,
    MoE,
    Nothing,
    PostNorm,
    PreNorm,
    Scaled,
)
from upslope.model.ffn import ffn_of
from upslope.model.flow import Flow
from upslope.model.hyper import HyperConnection
from upslope.model.lightning import LightningAttention
from upslope.model.mamba import Mamba2Mixer
from upslope.model.mla import LatentAttention
from upslope.model.moe import MixtureOfExperts
from upslope.model.norm import RMSNorm

Device = torch.device | str | None


def mixer_of(config: Mixer, model: ModelConfig, layer: int, device: Device) -> nn.Module | None:
    """The module of a mixer's config: (x (T, d), flow, memory) → (T, d); None for nothing."""
    if isinstance(config, Attention):
        return GQA(config, model, layer, device)
    if isinstance(config, MLA):
        return LatentAttention(config, model, layer, device)
    if isinstance(config, Compressed):
        return CompressedAttention(config, model, layer, device)
    if isinstance(config, Lightning):
        return LightningAttention(config, model, layer, device)
    if isinstance(config, Mamba2):
        return Mamba2Mixer(config, model, layer, device)
    return None


def channel_mixer_of(config: FFN, model: ModelConfig, layer: int, device: Device) -> nn.Module | None:
    """The module of an FFN's config: (x (T, d), flow) → (T, d); None for nothing."""
    if isinstance(config, Nothing):
        return None
    return MixtureOfExperts(config, model, layer, device) if isinstance(config, MoE) else ffn_of(config, model.d_model, device)


class Half(nn.Module):
    """The norms and the join round one half of a block; the half itself is handed in, so that its weights keep a short name."""

    def __init__(self, config: Layer, d_model: int, factors: tuple[float, float] | None, device: Device) -> None:
        super().__init__()
        self.factors = factors
        self.before = None if isinstance(config.norm, PostNorm) else RMSNorm(d_model, config.norm, device)
        self.after = None if isinstance(config.norm, PreNorm) else RMSNorm(d_model, config.norm, device)
        hyper = config.residual
        self.streams = HyperConnection(hyper, d_model, device) if isinstance(hyper, HyperConnections) else None

    def forward(self, x: Tensor, f: Callable[[Tensor], Tensor]) -> Tensor:
        """x (T, d), or (T, n, d) with hyper-connections, in float32 → the same shape."""
        if self.streams is not None:
            h, weights = self.streams.read(x)
            return self.streams.write(x, self._branch(h, f)[0], weights)
        out, normed = self._branch(x, f)
        if self.factors is not None:
            skip, branch = self.factors
            return skip * normed + branch * out
        return x + out

    def _branch(self, x: Tensor, f: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        normed = x if self.before is None else self.before(x)
        out = f(normed)
        return out if self.after is None else self.after(out), normed


class Block(nn.Module):
    """One layer: mixer, then FFN; either may be nothing."""

    def __init__(self, config: Layer, model: ModelConfig, layer: int, device: Device = None) -> None:
        super().__init__()
        d, residual = model.d_model, config.residual
        scaled = residual if isinstance(residual, Scaled) else None
        self.mixer = mixer_of(config.mixer, model, layer, device)
        self.mixer_half = None if self.mixer is None else Half(config, d, scaled.mixer if scaled else None, device)
        self.ffn = channel_mixer_of(config.ffn, model, layer, device)
        self.ffn_half = None if self.ffn is None else Half(config, d, scaled.ffn if scaled else None, device)

    def forward(self, x: Tensor, flow: Flow, memory: Memory | None) -> Tensor:
        """x: the residual stream in float32, (T, d) or (T, n, d) → the same shape."""
        if self.mixer is not None and self.mixer_half is not None:
            mixer = self.mixer
            x = self.mixer_half(x, lambda h: mixer(h, flow, memory))
        if self.ffn is not None and self.ffn_half is not None:
            ffn = self.ffn
            x = self.ffn_half(x, lambda h: ffn(h, flow))
        return x
