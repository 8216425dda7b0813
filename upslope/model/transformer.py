"""The transformer: embeddings, a pattern of blocks, a final norm, a head. Flat packed input, one module tree = one config tree.

A block with pre-norms: x ← x + mixer(norm(x)); x ← x + ffn(norm(x)). Sources: arXiv 1706.03762, 2002.04745, 2505.09388 (Qwen3).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from upslope.config import UsageError
from upslope.model.attention import GQA, Backend, Flow
from upslope.model.aux import Aux
from upslope.model.cache import KVCache, View
from upslope.model.config import Layer, ModelConfig, Tied
from upslope.model.ffn import SwiGLU
from upslope.model.linear import Embedding, Linear
from upslope.model.norm import RMSNorm
from upslope.model.packing import Packing


class Block(nn.Module):
    """One layer: mixer, then FFN, pre-normed, added to the residual stream."""

    def __init__(self, config: Layer, d_model: int, layer: int, device: torch.device | str | None = None) -> None:
        super().__init__()
        self.mixer_norm = RMSNorm(d_model, config.norm.eps, device)
        self.mixer = GQA(config.mixer, d_model, layer, device)
        self.ffn_norm = RMSNorm(d_model, config.norm.eps, device)
        self.ffn = SwiGLU(config.ffn, d_model, device)

    def forward(self, x: Tensor, flow: Flow, cache: KVCache | None) -> Tensor:
        """x (T, d), the residual stream in float32 → (T, d)."""
        x = x + self.mixer(self.mixer_norm(x), flow, cache)
        out: Tensor = x + self.ffn(self.ffn_norm(x))
        return out


class Transformer(nn.Module):
    """A decoder-only language model over flat packed tokens. Weights are undrawn until `model.init.initialise` or a load.

    backend: the attention kernel, "sdpa" or "eager" (reference); an attribute, so it can be changed at any time.
    """

    def __init__(self, config: ModelConfig, device: torch.device | str | None = None, backend: Backend = "sdpa") -> None:
        super().__init__()
        if config.vocab < 1:
            raise UsageError("model.vocab = 0: the number of tokens is not known yet\nway out: config.replace(vocab=tokenizer.vocab_size)")
        self.config, self.backend = config, backend
        self.embed = Embedding(config.vocab, config.d_model, device)
        self.blocks = nn.ModuleList(Block(layer, config.d_model, i, device) for i, layer in enumerate(config.layers()))
        self.final_norm = RMSNorm(config.d_model, config.final_norm.eps, device)
        self.head = None if isinstance(config.head, Tied) else Linear(config.d_model, config.vocab, device)

    @property
    def head_weight(self) -> Tensor:
        """The output matrix (V, d): for losses that never hold all logits at once."""
        return self.embed.weight if self.head is None else self.head.weight

    def forward(
        self, ids: Tensor, seg: Tensor | None = None, pos: Tensor | None = None, cache: View | None = None, aux: Aux | None = None
    ) -> Tensor:
        """Hidden states after the final norm.

        ids (T,) integer. seg (T,): segment numbers 0..S-1 in order; attention stays inside (None: one segment). pos (T,): positions
        (None: counted from 0 in each segment, or on from what the cache holds). cache: `cache.at(slots)`, segment i on slot i.
        aux: filled with side outputs if given (runs the eager backend). Returns (T, d) float32; row t has seen ids[:t+1].
        """
        if seg is None:
            seg = torch.zeros_like(ids)
        packing = Packing(seg)
        x = self.embed(ids)
        step = None
        if cache is not None:
            step = cache.cache.begin(cache.slots, packing.lengths, x.dtype)
        if pos is None:
            pos = step.column if step is not None else packing.offsets().to(ids.device)
        flow = Flow(packing, pos, step, self.backend, aux, x.dtype, {})
        for i, block in enumerate(self.blocks):
            x = block(x, flow, cache.cache.layers[i] if cache is not None else None)
        out: Tensor = self.final_norm(x)
        return out

    def logits(self, hidden: Tensor) -> Tensor:
        """(T, d) → (T, V)."""
        return F.linear(hidden, self.head_weight)
