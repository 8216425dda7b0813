"""Models written by hand in plain PyTorch, for one shape each: what `model_speed` measures the configurable model against.

Nothing is general here: batches are rectangles (B, T), every layer is alike, matrices that read the same input are one matrix, heads share
keys by `enable_gqa`, rotations come from a table. Weights are copied from ours, so that both compute the same function.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from upslope.model.attention import GQA
from upslope.model.config import Attention, Gated, MoE, Rope
from upslope.model.ffn import GatedFFN
from upslope.model.moe import MixtureOfExperts
from upslope.model.transformer import Transformer


def table(rope: Rope, length: int, width: int) -> tuple[Tensor, Tensor]:
    """cos and sin with the sign of the first half turned, (T, 1, D)."""
    angle = torch.arange(length)[:, None] * rope.base ** (-torch.arange(0, width, 2) / width)
    cos, sin = angle.cos(), angle.sin()
    return torch.cat((cos, cos), -1)[:, None], torch.cat((-sin, sin), -1)[:, None]


class SelfAttention(nn.Module):
    """Llama's attention, or with `qk_norm` Qwen3's."""

    def __init__(self, given: GQA, length: int) -> None:
        super().__init__()
        c = given.config
        assert isinstance(c.position, Rope) and given.k is not None and given.v is not None
        self.sizes, self.dim, self.eps = (c.heads, c.kv_heads, c.kv_heads), c.head_dim, 0.0
        self.qkv = nn.Parameter(torch.cat([given.q.weight, given.k.weight, given.v.weight]).detach().clone())
        self.o = nn.Parameter(given.o.weight.detach().clone())
        self.q_gain = self.k_gain = None
        if given.q_norm is not None and given.k_norm is not None:
            self.eps = given.q_norm.eps
            self.q_gain = nn.Parameter(given.q_norm.weight.detach().clone())
            self.k_gain = nn.Parameter(given.k_norm.weight.detach().clone())
        cos, sin = table(c.position, length, c.head_dim)
        self.register_buffer("cos", cos)
        self.register_buffer("sin", sin)

    def turned(self, x: Tensor, gain: Tensor | None) -> Tensor:
        """x (B, T, H, D) normed and rotated, (B, H, T, D)."""
        if gain is not None:
            x = F.rms_norm(x, (self.dim,), gain, self.eps)
        return torch.addcmul(x * self.cos, x.roll(self.dim // 2, -1), self.sin).transpose(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, T, d) → (B, T, d)."""
        rows, length, _ = x.shape
        q, k, v = F.linear(x, self.qkv).view(rows, length, -1, self.dim).split(self.sizes, 2)
        q, k = self.turned(q, self.q_gain), self.turned(k, self.k_gain)
        y = F.scaled_dot_product_attention(q, k, v.transpose(1, 2), is_causal=True, enable_gqa=self.sizes[0] != self.sizes[1])
        return F.linear(y.transpose(1, 2).reshape(rows, length, -1), self.o)


class SwiGLU(nn.Module):
    """d → 2 · hidden in one matrix → d."""

    def __init__(self, given: GatedFFN) -> None:
        super().__init__()
        self.gate_up = nn.Parameter(torch.cat([given.gate.weight, given.up.weight]).detach().clone())
        self.down = nn.Parameter(given.down.weight.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        """x (..., d) → (..., d)."""
        gate, up = F.linear(x, self.gate_up).chunk(2, -1)
        return F.linear(F.silu(gate) * up, self.down)


class Mixture(nn.Module):
    """Top-k of softmax scores, renormed; tokens sorted by expert, one pair of products per expert."""

    def __init__(self, given: MixtureOfExperts) -> None:
        super().__init__()
        self.k, e = given.config.router.select.k, given.experts
        assert e.gate is not None
        self.router = nn.Parameter(given.router.weight.detach().clone())
        self.gate_up = nn.Parameter(torch.cat([e.gate, e.up], 1).detach().clone())  # (E, 2 hidden, d)
        self.down = nn.Parameter(e.down.detach().clone())  # (E, d, hidden)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, T, d) → (B, T, d)."""
        flat = x.flatten(0, 1)
        weights, chosen = F.linear(flat, self.router).softmax(-1).topk(self.k, -1)
        weights = weights / weights.sum(-1, keepdim=True)
        order = chosen.flatten().argsort(stable=True)  # choices by expert
        rows, counts = flat[order // self.k], torch.bincount(chosen.flatten(), minlength=len(self.down)).tolist()
        parts = []
        for part, gate_up, down in zip(rows.split(counts), self.gate_up, self.down):
            gate, up = F.linear(part, gate_up).chunk(2, -1)
            parts.append(F.linear(F.silu(gate) * up, down))
        out = torch.cat(parts) * weights.flatten()[order, None]
        return torch.zeros_like(flat).index_add(0, order // self.k, out.to(flat.dtype)).view_as(x)


class Block(nn.Module):
    """Pre-norm attention and FFN."""

    def __init__(self, attention: SelfAttention, ffn: SwiGLU | Mixture, gains: tuple[Tensor, Tensor], eps: float) -> None:
        super().__init__()
        self.attention, self.ffn, self.eps = attention, ffn, eps
        self.gain, self.ffn_gain = (nn.Parameter(g.detach().clone()) for g in gains)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, T, d) → (B, T, d)."""
        x = x + self.attention(F.rms_norm(x, self.gain.shape, self.gain, self.eps))
        return x + self.ffn(F.rms_norm(x, self.ffn_gain.shape, self.ffn_gain, self.eps))


class Handwritten(nn.Module):
    """The whole model, with the weights of one of ours: dense or a mixture, Llama- or Qwen3-shaped, untied. Rows of `length` tokens."""

    def __init__(self, given: Transformer, length: int) -> None:
        super().__init__()
        self.eps = given.config.final_norm.eps
        blocks = []
        for block, layer in zip(given.blocks, given.config.layers()):
            assert isinstance(layer.mixer, Attention) and isinstance(layer.ffn, Gated | MoE) and layer.norm.kind == "pre"
            gains = block.mixer_half.before.weight, block.ffn_half.before.weight
            ffn = Mixture(block.ffn) if isinstance(layer.ffn, MoE) else SwiGLU(block.ffn)
            blocks.append(Block(SelfAttention(block.mixer, length), ffn, gains, layer.norm.eps))
        self.blocks = nn.ModuleList(blocks)
        self.embed = nn.Parameter(given.embed.weight.detach().clone())
        self.gain = nn.Parameter(given.final_norm.weight.detach().clone())
        self.head = nn.Parameter(given.head_weight.detach().clone())

    def forward(self, ids: Tensor) -> Tensor:
        """ids (B, T) → logits (B, T, V)."""
        x = F.embedding(ids, self.embed)
        for block in self.blocks:
            x = block(x)
        return F.linear(F.rms_norm(x, self.gain.shape, self.gain, self.eps), self.head)
