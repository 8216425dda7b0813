"""The transformer: embeddings, a pattern of blocks, a final norm, a head. Flat packed input, one module tree = one config tree.

Sources: arXiv 1706.03762; what a block may be made of: `model.config`.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from upslope.config import UsageError
from upslope.model.aux import Aux
from upslope.model.block import Block
from upslope.model.cache import View
from upslope.model.config import HyperConnections, ModelConfig, Tied
from upslope.model.flow import Backend, Flow
from upslope.model.hyper import Collapse
from upslope.model.linear import Embedding, Linear
from upslope.model.mtp import Predictors
from upslope.model.norm import RMSNorm
from upslope.model.packing import Packing


class Transformer(nn.Module):
    """A decoder-only language model over flat packed tokens. Weights are undrawn until `model.init.initialise` or a load.

    backend: the attention kernel, see `model.backends`; an attribute, so it can be changed at any time.
    """

    def __init__(self, config: ModelConfig, device: torch.device | str | None = None, backend: Backend = "auto") -> None:
        super().__init__()
        if config.vocab < 1:
            raise UsageError("model.vocab = 0: the number of tokens is not known yet\nway out: config.replace(vocab=tokenizer.vocab_size)")
        self.config, self.backend = config, backend
        d = config.d_model
        self.embed = Embedding(config.vocab, d, device)
        layers = list(config.layers())
        self.blocks = nn.ModuleList(Block(layer, config, i, device) for i, layer in enumerate(layers))
        hyper = layers[0].residual
        self.streams = hyper.streams if isinstance(hyper, HyperConnections) else 0
        self.collapse = Collapse(hyper, d, device) if isinstance(hyper, HyperConnections) else None
        self.final_norm = RMSNorm(d, config.final_norm, device)
        self.head = None if isinstance(config.head, Tied) else Linear(d, config.vocab, device)
        self.mtp = None if config.mtp is None else Predictors(config, device)

    @property
    def head_weight(self) -> Tensor:
        """The output matrix (V, d)."""
        return self.embed.weight if self.head is None else self.head.weight

    def tensors(self) -> dict[str, Tensor]:
        """All that the model is made of, by name: parameters, and buffers that are saved (selection biases, hash tables)."""
        return dict(self.state_dict(keep_vars=True))

    def backends(self, grad: bool = True, max_logit: bool = False) -> dict[str, str]:
        """Per kind of block with softmax attention: the backend that new tokens run on and, in brackets, why no faster one; for the log.

        grad, max_logit: whether gradients and the largest logits are wanted.
        """
        weight, names = self.embed.weight, [name for name, repeat in self.config.pattern for _ in range(repeat)]
        device, chosen = weight.device.type, {}
        dtype = torch.get_autocast_dtype(device) if weight.is_cuda and torch.is_autocast_enabled(device) else weight.dtype
        for name, block in zip(names, self.blocks):
            if (choice := getattr(block.mixer, "choice", None)) is not None:
                backend, why = choice(self.backend, device, dtype, grad, max_logit)
                chosen[name] = f"{backend} ({why})" if why else backend
        return chosen

    def embedded(self, ids: Tensor) -> Tensor:
        """Embeddings (T, d) of ids (T,), scaled as the config says."""
        x: Tensor = self.embed(ids)
        return x * math.sqrt(self.config.d_model) if self.config.embed_scale == "sqrt_d" else x

    def forward(
        self, ids: Tensor, seg: Tensor | None = None, pos: Tensor | None = None, cache: View | None = None, aux: Aux | None = None
    ) -> Tensor:
        """Hidden states after the final norm.

        ids (T,) integer. seg (T,): segment numbers 0..S-1 in order; tokens see only their own segment (None: one segment). pos (T,):
        positions (None: counted from 0 in each segment, or on from what the cache holds). cache: `cache.at(slots)`, segment i on slot i.
        aux: filled with the side outputs that it wants. Returns (T, d) float32; row t has seen ids[:t+1].
        """
        if seg is None:
            seg = torch.zeros_like(ids)
        packing = Packing(seg)
        x = self.embedded(ids)
        step = None
        if cache is not None:
            step = cache.cache.begin(cache.slots, packing.lengths, x.dtype)
        if pos is None:
            pos = step.column if step is not None else packing.offsets().to(ids.device)
        flow = Flow(ids, pos, packing, step, self.backend, aux, x.dtype)
        if self.collapse is not None:
            x = x[:, None].expand(-1, self.streams, -1)
        for i, block in enumerate(self.blocks):
            x = block(x, flow, cache.cache.layers[i] if cache is not None else None)
        if self.collapse is not None:
            x = self.collapse(x)
        out: Tensor = self.final_norm(x)
        if self.mtp is not None and aux is not None and "mtp" in aux.wants:
            aux.mtp = self.mtp(out, flow, self.embedded)
        return out

    def projected(self, hidden: Tensor, weight: Tensor) -> Tensor:
        """hidden (T, d) times the output matrix (V, d) → (T, V)."""
        return F.linear(hidden, weight)

    def logits(self, hidden: Tensor) -> Tensor:
        """(T, d) → (T, V)."""
        out = self.projected(hidden, self.head_weight)
        cap = self.config.logit_softcap
        return out if cap is None else cap * torch.tanh(out / cap)
