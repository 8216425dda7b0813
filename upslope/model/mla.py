"""Multi-head latent attention, dense or sparse.

    c_t = N(x_t W_DKV),  k_R = rope(x_t W_KR) shared by the heads,  [k_C; v] = c_t W_UKV per head;  q = N(x_t W_DQ) W_UQ = [q_C; rope(q_R)]
    o_t = Σ_s softmax_s((q_C·k_C + q_R·k_R) · a) v_s,   a = (nope_dim + rope_dim)^-1/2, times YaRN's temperature

Only c and k_R are cached. Absorbed: q_C W_UK meets c itself, and Σ_s p_s c_s becomes a value by W_UV, so that no key or value is ever made:
the way of decoding. Sparse: s runs over the tokens that an indexer chose, in this layer or in the nearest below that has one.
Sources: DeepSeek-V2, arXiv 2405.04434 §2.1; sparse: V3.2, arXiv 2512.02556; shared choice (IndexShare): arXiv 2603.12201.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from upslope.model.backends import Choice, Mask, Needs, core, resolve
from upslope.model.cache import Memory
from upslope.model.config import MLA, RMS, Indexer, ModelConfig
from upslope.model.flow import Backend, Flow
from upslope.model.indexer import LightningIndexer, best, divergence, restricted, scores
from upslope.model.linear import Linear
from upslope.model.norm import RMSNorm, wide
from upslope.model.rope import rotate, softmax_scale


class Sight(NamedTuple):
    """A rectangle of queries q (S, H, N, dn + dr) and the tokens that they may see: latent (S, L, dc), rope_key (S, L, dr), mask.

    scored: how high this layer's indexer, where it has one, scores them (S, N, L).
    """

    q: Tensor
    latent: Tensor
    rope_key: Tensor
    mask: Mask
    scored: Tensor | None = None

    def additive(self) -> Tensor:
        """The mask as a tensor, broadcastable to (S, N, L)."""
        if isinstance(self.mask, Tensor):
            return self.mask[:, 0]
        n, zeros = self.q.shape[2], self.q.new_zeros(1, 1, 1)
        return zeros if self.mask is None else zeros.new_full((1, n, n), -math.inf).triu(1)

    def narrowed(self, columns: Tensor) -> Sight:
        """Sight of these columns (S, N, K) only: read alone where there is one query, masked out of all where there are more."""
        mask = self.additive()
        if self.q.shape[2] > 1:
            return self._replace(mask=restricted(mask, columns, self.latent.shape[1])[:, None])
        mask = torch.take_along_dim(mask.expand(-1, -1, self.latent.shape[1]), columns, -1)[:, None]
        latent, rope_key = (torch.take_along_dim(t, columns.mT, 1) for t in (self.latent, self.rope_key))
        return Sight(self.q, latent, rope_key, mask, None if self.scored is None else torch.take_along_dim(self.scored, columns, -1))


def _as_given(latent: Tensor) -> Tensor:
    return latent


class LatentAttention(nn.Module):
    """The mixer. absorb: compute without making keys and values; None = where older tokens are read from a cache."""

    def __init__(self, config: MLA, model: ModelConfig, layer: int, device: torch.device | str | None = None) -> None:
        super().__init__()
        self.config, self.layer, d, c = config, layer, model.d_model, config
        norm, latent, width = RMS(eps=c.eps), c.q_latent, c.heads * (c.nope_dim + c.rope_dim)
        self.q = Linear(d, width, device) if latent is None else None
        self.q_a = None if latent is None else Linear(d, latent, device)
        self.q_a_norm = None if latent is None else RMSNorm(latent, norm, device)
        self.q_b = None if latent is None else Linear(latent, width, device)
        self.kv_a = Linear(d, c.kv_latent + c.rope_dim, device)
        self.kv_a_norm = RMSNorm(c.kv_latent, norm, device)
        self.kv_b = Linear(c.kv_latent, c.heads * (c.nope_dim + c.value_dim), device)
        self.o = Linear(c.heads * c.value_dim, d, device)
        self.indexer = LightningIndexer(c.select, d, latent, device) if isinstance(c.select, Indexer) and latent is not None else None
        self.scale = (c.nope_dim + c.rope_dim) ** -0.5 * softmax_scale(c.position)
        self.absorb: bool | None = None

    def choice(self, backend: Backend, device: str, dtype: torch.dtype, grad: bool, max_logit: bool = False) -> Choice:
        """The backend of this layer, and why not a faster one."""
        c = self.config
        wider = c.value_dim != c.nope_dim + c.rope_dim
        return resolve(backend, device, Needs(wider=wider, max_logit=max_logit, grad=grad, dtype=dtype))

    def over_heads(self, probs: Tensor) -> Tensor:
        """The mean (S, N, L) over heads of probabilities (S, H, N, L); no gradient."""
        return probs.mean(1)

    def forward(self, x: Tensor, flow: Flow, memory: Memory | None = None) -> Tensor:
        """x (T, d) → (T, d); with a cache, the new tokens also see, and join, what their slots hold."""
        c, step = self.config, flow.step
        at = flow.angles(c.position, c.rope_dim)
        q, q_latent = self._queries(x)
        q = torch.cat((q[..., : c.nope_dim], rotate(q[..., c.nope_dim :], at)), -1)
        latent, rope_key = wide(self.kv_a(x)).split((c.kv_latent, c.rope_dim), -1)
        latent, rope_key = self.kv_a_norm(latent), rotate(rope_key[:, None], at)[:, 0]
        if memory is not None and step is not None:
            memory.append(step, "latent", latent)
            memory.append(step, "rope_key", rope_key)
        sights = self._sights(q, latent, rope_key, flow, memory)
        if self.indexer is not None:
            sights = self._scored(sights, x, q_latent, flow, memory)
            flow.shared["index"] = [self._best(s) for s in sights]
        if c.select is not None:
            columns: list[Tensor | None] = flow.shared["index"]
            sights = [s if i is None else s.narrowed(i) for s, i in zip(sights, columns)]
        seen: list[Tensor] | None = [] if flow.wants("max_logit") else None
        losses: list[Tensor] = []
        out = [self._attend(s, flow, seen, losses) for s in sights]
        if seen and flow.aux is not None:
            flow.aux.saw_logit(self.layer, torch.stack(seen).amax(0))
        if losses and flow.aux is not None:
            flow.aux.saw_index(self.layer, self._flat(losses, flow).sum(), flow.packing.tokens)  # padding stays behind
        mixed: Tensor = self.o(self._flat(out, flow).flatten(1))
        return mixed

    def _queries(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Queries (T, H, dn + dr) and what they are made of: their latent, or x itself."""
        made = x if self.q_a is None or self.q_a_norm is None else self.q_a_norm(self.q_a(x))
        last = self.q if self.q_b is None else self.q_b
        assert last is not None
        return wide(last(made)).unflatten(-1, (self.config.heads, -1)), made

    def _sights(self, q: Tensor, latent: Tensor, rope_key: Tensor, flow: Flow, memory: Memory | None) -> list[Sight]:
        """New tokens by bucket, or against what their slots hold."""
        packing, step = flow.packing, flow.step
        if memory is None or step is None or step.fresh:
            buckets = zip(packing.pad(q), packing.pad(latent[:, None]), packing.pad(rope_key[:, None]))
            return [Sight(a, b[:, 0], r[:, 0], "causal") for a, b, r in buckets]
        return [Sight(step.pad(q), memory.read(step, "latent"), memory.read(step, "rope_key"), step.mask())]

    def _flat(self, parts: list[Tensor], flow: Flow) -> Tensor:
        """(S, H, N, D) per rectangle → (T, H, D)."""
        step = flow.step
        return flow.packing.unpad(parts) if step is None or step.fresh else step.unpad(parts[0])

    def _scored(self, sights: list[Sight], x: Tensor, q_latent: Tensor, flow: Flow, memory: Memory | None) -> list[Sight]:
        """With the indexer's scores, where something reads them."""
        assert self.indexer is not None
        step, packing, wanted = flow.step, flow.packing, flow.wants("index")
        with torch.set_grad_enabled(wanted and torch.is_grad_enabled()):
            asks = self.indexer(x, q_latent, flow)
            if memory is not None and step is not None:
                memory.append(step, "index_key", asks.k[:, 0])
            if self.indexer.config.stage == "dense" and not wanted:
                return sights
            if memory is None or step is None or step.fresh:
                pieces = [(q, k[:, 0], w) for q, k, w in zip(*map(packing.pad, asks))]
            else:
                pieces = [(step.pad(asks.q), memory.read(step, "index_key").to(asks.q.dtype), step.pad(asks.weights))]
            with torch.autocast(x.device.type, enabled=False):
                return [s._replace(scored=scores(*piece)) for s, piece in zip(sights, pieces)]

    def _best(self, sight: Sight) -> Tensor | None:
        """The columns that this layer's indexer chooses; None = all."""
        assert self.indexer is not None
        config = self.indexer.config
        if config.stage == "dense" or sight.scored is None:
            return None
        return best(sight.scored + sight.additive(), config.top_k)

    def _formed(self, sight: Sight, absorb: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values. Absorbed, one latent head is both key and value: its rotary channels are cut off afterwards."""
        c, q = self.config, sight.q
        latent, rope_key = sight.latent.to(q.dtype), sight.rope_key.to(q.dtype)
        if absorb:
            k = torch.cat((getattr(self.kv_b, "rounded", _as_given)(latent), rope_key), -1)[:, None]
            return torch.cat((wide(q[..., : c.nope_dim] @ self._up()[0]), q[..., c.nope_dim :]), -1), k, k
        up = wide(self.kv_b(latent)).unflatten(-1, (c.heads, -1)).transpose(1, 2)
        return q, torch.cat((up[..., : c.nope_dim], rope_key[:, None].expand(-1, c.heads, -1, -1)), -1), up[..., c.nope_dim :]

    def _up(self) -> tuple[Tensor, Tensor]:
        """W_UK (H, dn, dc) and W_UV (H, dv, dc), as `kv_b` reads them: rounded where its operands are, and so are latents when absorbed."""
        c = self.config
        rounded = getattr(self.kv_b, "rounded_weight", None)
        weight = self.kv_b.weight if rounded is None else rounded()
        keys, values = weight.unflatten(0, (c.heads, -1)).split((c.nope_dim, c.value_dim), 1)
        return keys, values

    def _attend(self, sight: Sight, flow: Flow, seen: list[Tensor] | None, losses: list[Tensor]) -> Tensor:
        """What the queries read, (S, H, N, dv); the indexer's divergences (S, 1, N, 1) join `losses`."""
        step, device = flow.step, sight.q.device.type
        absorb = (step is not None and not step.fresh) if self.absorb is None else self.absorb
        q, k, v = self._formed(sight, absorb)
        narrow = torch.get_autocast_dtype("cuda") if device == "cuda" and torch.is_autocast_enabled("cuda") else q.dtype
        choice = self.choice(flow.backend, device, narrow, torch.is_grad_enabled() and q.requires_grad, seen is not None)
        with torch.autocast(device, enabled=False):
            if sight.scored is not None and flow.wants("index"):
                mask = sight.additive()
                with torch.no_grad():
                    probs = self.over_heads(torch.softmax(q @ k.mT * self.scale + mask[:, None], -1))
                losses.append(divergence(probs, sight.scored, mask.expand_as(probs))[:, None, :, None])
            if choice.backend != "eager":
                q, k, v = q.to(narrow), k.to(narrow), v.to(narrow)
            out = core(q, k, v, sight.mask, choice, seen, scale=self.scale)
        return out[..., : self.config.kv_latent] @ self._up()[1].mT.to(out.dtype) if absorb else out
