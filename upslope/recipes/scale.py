"""Shrinking a model to a size: dimensions get smaller, knobs stay.

What stays: every kind and literal, rope bases and factors, soft-caps, routing and balancing, the query heads to a key-value head where
there are as many, and one whole period of the layer pattern, at least four layers, with every kind of block. What shrinks, with the width:
heads, head widths, latents, hidden widths, experts; and with the context: windows, indexer choices, compression rates, YaRN's original
context. The width is the largest multiple of 16 whose parameters fit the size. The rules are those of `shrunk`, one place for all labs.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, overload

from upslope.config import FrozenDict, UsageError
from upslope.machine.stage import Recipe
from upslope.model.config import (
    CSA,
    FFN,
    HCA,
    MLA,
    Attention,
    Compressed,
    Gated,
    Hashed,
    Indexer,
    Layer,
    Lightning,
    Mamba2,
    Mixer,
    ModelConfig,
    MoE,
    Position,
    Relu2,
    Rope,
    TopK,
    Yarn,
)
from upslope.train.init import Scratch

NAMED = {"tiny": 640_000}
DEPTH = 4  # layers at least
EXPERTS_A_CHOICE = 4  # experts = this many times the chosen ones, at most as many as there are
TOKENS_A_PARAMETER = 20  # of a budget (Hoffmann et al. 2022, arXiv 2203.15556)
UNITS = {"k": 1e3, "m": 1e6, "b": 1e9}


def parse_size(text: str) -> int:
    """ "tiny", "600k", "1M", "1.5B" → parameters; a budget "1e15 FLOPs" → the N of C = 6 N · 20 N. UsageError for anything else."""
    if text in NAMED:
        return NAMED[text]
    if match := re.fullmatch(r"(\d+(?:\.\d+)?)([kmb])", text, re.IGNORECASE):
        count = round(float(match[1]) * UNITS[match[2].lower()])
    elif match := re.fullmatch(r"(\d+(?:\.\d+)?(?:e\d+)?) ?flops", text, re.IGNORECASE):
        count = round((float(match[1]) / (6 * TOKENS_A_PARAMETER)) ** 0.5)
    else:
        count = 0
    if not count:
        raise UsageError(
            f"--size {text!r} is not a size\nway out: tiny, a number of parameters such as 600k, 10M or 1B, or a budget such as 1e15flops"
        )
    return count


@overload
def scale(what: ModelConfig, size: int | str, *, context: int = 512, vocab: int = 1024) -> ModelConfig: ...


@overload
def scale(what: Recipe, size: int | str, *, vocab: int = 1024) -> Recipe: ...


def scale(what: ModelConfig | Recipe, size: int | str, *, context: int = 512, vocab: int = 1024) -> ModelConfig | Recipe:
    """The model with at most `size` parameters at a vocabulary of `vocab`; the result's vocabulary is 0, to be filled from a tokenizer.

    Of a recipe: the same recipe, each model that a stage draws anew shrunk, its context kept. A budget sets the model's size, not the
    recipe's tokens. UsageError where even the smallest width has more, or a recipe draws no model that is larger.
    """
    target = parse_size(size) if isinstance(size, str) else size
    if isinstance(what, ModelConfig):
        return _fitted(what, target, context, vocab)
    stages = dict(what.stages)
    for name, stage in what.stages.items():
        init = getattr(stage, "init", None)
        if isinstance(init, Scratch):
            stages[name] = stage.replace(init=init.replace(model=_fitted(init.model, target, init.model.context, vocab)))
    if stages == dict(what.stages):
        raise UsageError(f"recipe {what.name!r} draws no larger model: there is nothing to shrink\nway out: a smaller --size")
    return what.replace(stages=FrozenDict(stages))


def _fitted(model: ModelConfig, target: int, context: int, vocab: int) -> ModelConfig:
    """The widest shrunk form within the target, widths being multiples of 16; the model itself where it fits."""
    if model.replace(vocab=vocab).params() <= target:
        return model.replace(vocab=0, context=context)
    best: ModelConfig | None = None
    for width in range(16, model.d_model + 1, 16):
        small = shrunk(model, width, context)
        if small.replace(vocab=vocab).params() > target:
            break
        best = small
    if best is None:
        least = shrunk(model, 16, context).replace(vocab=vocab).params()
        raise UsageError(
            f"{target:,} parameters are too few for this model: its smallest form has {least:,}\nway out: --size {least // 1000 + 1}k"
        )
    return best


def shrunk(model: ModelConfig, width: int, context: int) -> ModelConfig:
    """The model at this width and context, one period deep."""
    names = [name for name, repeat in model.pattern for _ in range(repeat)]
    kept = period(names)
    blocks = {name: _layer(model.blocks[name], model, width, context) for name in model.blocks if name in kept or _is_mtp(model, name)}
    changed: dict[str, Any] = {"d_model": width, "blocks": FrozenDict(blocks), "pattern": tuple(kept), "vocab": 0, "context": context}
    return model.replace(**changed)


def _is_mtp(model: ModelConfig, name: str) -> bool:
    return model.mtp is not None and model.mtp.block == name


def period(names: Sequence[str]) -> list[str]:
    """The shortest stretch from the bottom that repeats, or holds every kind of block; whole periods up to four layers at least."""
    n, kinds = len(names), set(names)
    step = next(p for p in range(1, n + 1) if all(names[i] == names[i - p] for i in range(p, n)))
    if step <= n // 2:
        return list(names[:step]) * max(1, -(-min(DEPTH, n) // step))
    reach = next(i for i in range(1, n + 1) if set(names[:i]) == kinds)
    return list(names[: max(reach, min(DEPTH, n))])


def _round(x: float, step: int, least: int) -> int:
    return max(least, step * round(x / step))


def _head_dim(width: int, head_dim: int, heads: int = 0, inner: float = 0.0) -> int:
    """A head's width at model width `width`; wider where `inner` channels would make more heads than there are."""
    dim = min(head_dim, 16 if width < 128 else 32 if width < 512 else 64)
    while heads and inner > heads * dim and dim < head_dim:
        dim = min(head_dim, 2 * dim)
    return dim


def _heads(heads: int, kv_heads: int, inner: float, head_dim: int) -> tuple[int, int]:
    """(heads, kv_heads) for an inner width: as many to a key-value head as there are, or all to one where there are fewer."""
    count, share = min(heads, max(2, round(inner / head_dim))), heads // kv_heads
    groups = max(1, round(count / share))
    return groups * min(share, count), groups


def _length(tokens: int, model: ModelConfig, context: int, least: int) -> int:
    """A number of tokens, shrunk with the context."""
    return min(tokens, max(least, round(tokens * context / model.context)))


def _position(position: Position, model: ModelConfig, context: int) -> Position:
    if isinstance(position, Rope) and isinstance(position.scaling, Yarn):
        scaling = position.scaling.replace(original=_length(position.scaling.original, model, context, 16))
        return position.replace(scaling=scaling)
    return position


def _layer(layer: Layer, model: ModelConfig, width: int, context: int) -> Layer:
    return layer.replace(mixer=_mixer(layer.mixer, model, width, context), ffn=_ffn(layer.ffn, width / model.d_model))


def _mixer(m: Mixer, model: ModelConfig, width: int, context: int) -> Mixer:
    ratio = width / model.d_model
    if isinstance(m, Attention):
        inner = m.heads * m.head_dim * ratio
        dim = _head_dim(width, m.head_dim, m.heads, inner)
        heads, kv_heads = _heads(m.heads, m.kv_heads, inner, dim)
        changed: dict[str, Any] = {"heads": heads, "kv_heads": kv_heads, "head_dim": dim, "position": _position(m.position, model, context)}
        if m.window is not None:
            changed["window"] = _length(m.window, model, context, 16)
        if m.value_dim is not None:
            changed["value_dim"] = _round(m.value_dim * dim / m.head_dim, 8, 8)
        if m.scale is not None:
            changed["scale"] = m.scale * (m.head_dim / dim) ** 0.5
        return m.replace(**changed)
    if isinstance(m, MLA):
        unit = _head_dim(width, m.nope_dim) // 2 / 64
        nope, turning, value = (round(x * unit) for x in (m.nope_dim, m.rope_dim, m.value_dim))
        heads, _ = _heads(m.heads, m.heads, m.heads * (m.nope_dim + m.rope_dim) * ratio, nope + turning)
        changed = {
            "heads": heads,
            "nope_dim": nope,
            "rope_dim": turning,
            "value_dim": value,
            "kv_latent": _round(m.kv_latent * ratio, 8, 16),
        }
        changed["position"] = _position(m.position, model, context)
        if m.q_latent is not None:
            changed["q_latent"] = _round(m.q_latent * ratio, 8, 16)
        if isinstance(m.select, Indexer):
            index = {"heads": max(2, round(m.select.heads * ratio)), "dim": round(turning / m.select.rope.fraction)}
            top_k = _length(m.select.top_k, model, context, 16)
            changed["select"] = m.select.replace(**index, top_k=top_k, rope=_position(m.select.rope, model, context))
        return m.replace(**changed)
    if isinstance(m, Compressed):
        dim = 2 * _head_dim(width, m.head_dim)
        heads, _ = _heads(m.heads, m.heads, m.heads * m.head_dim * ratio, dim)
        groups = next(g for g in range(min(m.groups, heads), 0, -1) if heads % g == 0)
        history = m.history
        if isinstance(history, HCA):
            history = history.replace(rate=_length(history.rate, model, context, 8))
        if isinstance(history, CSA):
            index = {"index_heads": max(2, round(history.index_heads * ratio)), "index_dim": max(8, dim // 4)}
            history = history.replace(**index, top_k=_length(history.top_k, model, context, 8))
        return m.replace(
            heads=heads,
            head_dim=dim,
            q_latent=_round(m.q_latent * ratio, 8, 16),
            window=_length(m.window, model, context, 16),
            history=history,
            position=_position(m.position, model, context),
            groups=groups,
            group_dim=_round(m.group_dim * ratio, 8, 16),
        )
    if isinstance(m, Lightning):
        dim = _head_dim(width, m.head_dim)
        return m.replace(heads=_heads(m.heads, m.heads, m.heads * m.head_dim * ratio, dim)[0], head_dim=dim)
    if isinstance(m, Mamba2):
        dim = _head_dim(width, m.head_dim)
        groups = min(m.groups, 2)
        heads = groups * min(m.heads // groups, max(1, round(m.heads * m.head_dim * ratio / dim / groups)))
        return m.replace(heads=heads, head_dim=dim, state=min(m.state, 2 * dim), groups=groups)
    return m


def _plain(f: Gated | Relu2, ratio: float) -> Gated | Relu2:
    return f.replace(hidden=_round(f.hidden * ratio, 8, 8))


def _ffn(f: FFN, ratio: float) -> FFN:
    if isinstance(f, Gated | Relu2):
        return _plain(f, ratio)
    if not isinstance(f, MoE):
        return f
    select = f.router.select
    k = min(select.k, 4)
    groups = min(select.groups, 4) if isinstance(select, TopK) else 1
    experts = min(f.experts, EXPERTS_A_CHOICE * max(k, groups))
    if isinstance(select, Hashed):
        select = select.replace(k=k)
    else:
        select = select.replace(k=k, groups=groups, keep=max(1, round(groups * select.keep / select.groups)))
    return f.replace(
        experts=experts,
        expert=_plain(f.expert, ratio),
        shared=None if f.shared is None else _plain(f.shared, ratio),
        latent=None if f.latent is None else _round(f.latent * ratio, 8, 8),
        router=f.router.replace(select=select),
    )
