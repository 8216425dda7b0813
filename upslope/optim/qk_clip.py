"""QK-Clip: heads whose attention logits grow too large get smaller query and key weights, and nothing else is touched.

    gamma_h = min(1, tau / S_h),  S_h = largest logit of head h since the last clip
    own keys:     W_q^h *= gamma_h^alpha,  W_k^h *= gamma_h^(1 - alpha)
    shared keys:  "q"    W_q^h *= gamma_h
                  "min"  W_k^g *= f_g = min over the group of gamma^(1 - alpha),  W_q^h *= gamma_h / f_g
    MLA:          q^C rows *= gamma_h^alpha,  k^C rows *= gamma_h^(1 - alpha),  q^R rows *= gamma_h;  k^R and values stay

Logits are bilinear in q and k and rotation is linear, so each head's logits shrink by exactly gamma_h. After every optimizer step.
Source: Kimi K2, arXiv 2507.20534 §2.1; `core/optimizer/qk_clip.py` of Megatron-LM for alpha.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from upslope.config import UsageError
from upslope.optim.heads import attentions
from upslope.optim.shards import Shards, local

Shared = Literal["q", "min"]


class SeesLogits(Protocol):
    """Takes side outputs of a forward pass: `upslope.model.aux.Aux(frozenset({"max_logit"}))`."""

    max_logit: dict[int, Tensor]


def gamma(largest: Tensor, tau: float) -> Tensor:
    """min(1, tau / S) for the largest logits S (heads,); 1 where S is not above tau, also where it is negative."""
    return torch.where(largest > tau, tau / largest.clamp_min(tau), torch.ones_like(largest))


def clippable(model: nn.Module) -> dict[int, Any]:
    """Layer → attention module, of those whose logits follow the scale of their weights: not behind a QK-norm or a soft-cap.

    UsageError where there is none: norms and caps bound the logits already.
    """
    bounds = ("qk_norm", "softcap")
    found = {m.layer: m for _, m in attentions(model) if all(getattr(m.config, b, None) is None for b in bounds)}
    if not found:
        raise UsageError("QK-Clip: no attention without QK-norm or soft-cap, which bound the logits already\nway out: no QK-Clip")
    return found


@torch.no_grad()
def max_logits(model: nn.Module, aux: SeesLogits, ids: Tensor, seg: Tensor | None = None, pos: Tensor | None = None) -> dict[int, Tensor]:
    """Layer → exact largest logit (heads,) over the allowed pairs of one micro-batch, by a forward pass without gradient.

    aux: a fresh `Aux` that wants "max_logit"; more passes with the same one, or `+`, take the maximum over micro-batches.
    """
    model(ids, seg, pos, aux=aux)
    return aux.max_logit


@torch.no_grad()
def qk_clip(
    model: nn.Module,
    largest: Mapping[int, Tensor],
    tau: float = 100.0,
    alpha: float = 0.5,
    shared: Shared = "q",
    masters: Mapping[str, Tensor] | None = None,
    shards: Shards | None = None,
) -> dict[int, Tensor]:
    """Scales the query and key weights of heads above `tau` in place; heads at or below keep their logits, with "q" their bits.

    largest: layer → (heads,), all-reduced (MAX) where data is split over ranks. shared: where key heads serve several query heads or
    layers; keys that another layer reads are never scaled. masters: float32 copies, `Optimizer.masters()`, scaled along. shards: who holds
    the rest, where parameters are parts of larger ones; `largest` is then of all heads.
    Returns layer → gamma (heads,) of the layers that were clipped. UsageError where nothing can be clipped or tau, alpha are out of range.
    """
    if not tau > 0 or not 0 <= alpha <= 1:
        raise UsageError(f"QK-Clip: tau = {tau:g}, alpha = {alpha:g}; tau must be > 0 and alpha in [0, 1]\nway out: tau = 100, alpha = 0.5")
    modules, held, clipped = clippable(model), _held(model, masters or {}, shards), {}
    lent = _lent(model)
    for layer, module in modules.items():
        factors = gamma(largest[layer], tau) if layer in largest else None
        if factors is None or bool((factors == 1).all()):
            continue
        clipped[layer] = factors
        if module.config.kind == "mla":
            _clip_latent(module, factors, alpha, held)
        else:
            _clip_grouped(module, factors, alpha, shared, layer in lent, held)
    return clipped


class _Held(NamedTuple):
    """What this process holds of a parameter: its rows from `first` on of `rows`, and the tensor to scale, of which `mine` is a copy."""

    mine: Tensor
    wide: Tensor
    first: int
    rows: int


def _clip_grouped(module: Any, g: Tensor, alpha: float, shared: Shared, lent: bool, held: Mapping[int, _Held]) -> None:
    c, heads = module.config, len(g)
    if module.k is None or lent or (c.heads != c.kv_heads and shared == "q"):
        _scale(module.q, g, held)
        return
    per_key = c.heads // c.kv_heads
    key = (g ** (1 - alpha)).view(heads // per_key, -1).amin(1)  # (G,)
    _scale(module.k, key, held)
    own = g**alpha if per_key == 1 else g / key.repeat_interleave(per_key)
    _scale(module.q, own, held)


def _clip_latent(module: Any, g: Tensor, alpha: float, held: Mapping[int, _Held]) -> None:
    nope = module.config.nope_dim
    q = module.q if module.q_b is None else module.q_b
    _scale(q, g**alpha, held, slice(0, nope))
    _scale(q, g, held, slice(nope, None))
    _scale(module.kv_b, g ** (1 - alpha), held, slice(0, nope))


def _scale(linear: nn.Linear, factors: Tensor, held: Mapping[int, _Held], part: slice = slice(None)) -> None:
    """Multiplies the rows `part` of each head whose factor is not 1, as far as they are held here."""
    at = (factors != 1).nonzero()[:, 0].tolist()
    for parameter in linear.parameters(recurse=False):
        mine, wide, first, rows = held[id(parameter)]
        size = rows // len(factors)
        low, high, _ = part.indices(size)
        for h in at:
            start, stop = max(h * size + low - first, 0), min(h * size + high - first, len(mine))
            if start >= stop:
                continue
            piece = wide[start:stop]
            piece.mul_(factors[h].to(piece.device, torch.promote_types(piece.dtype, torch.float32)))
            if wide is not mine:
                mine[start:stop].copy_(piece)


def _held(model: nn.Module, masters: Mapping[str, Tensor], shards: Shards | None) -> dict[int, _Held]:
    found = {}
    for name, p in model.named_parameters():
        mine = local(p)
        first, rows = (0, len(p) if p.ndim else 1) if shards is None else (shards.first(name), shards.shape(name)[0])
        found[id(p)] = _Held(mine, masters.get(name, mine), first, rows)
    return found


def _lent(model: nn.Module) -> set[int]:
    """Layers whose keys the layers above read."""
    lent, owner = set(), -1
    for _, m in attentions(model):
        if m.config.kind != "gqa":
            continue
        if m.k is None:
            lent.add(owner)
        else:
            owner = m.layer
    return lent
