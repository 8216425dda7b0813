"""A model cut into entries (embedding, blocks, MTP modules, head): what each weighs, computes, keeps for backward and sends."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from upslope.model.config import (
    FFN,
    MLA,
    Attention,
    Compressed,
    Gated,
    HyperConnections,
    Indexer,
    Layer,
    Lightning,
    Mamba2,
    Mixer,
    ModelConfig,
    MoE,
    Nothing,
    Relu2,
    Reuse,
    Tied,
)
from upslope.model.cost import _collapse, _latent_flops, attention_flops, ffn_weights, layer_weights


class Kept(NamedTuple):
    """Elements per token that backward reads. stream: of the residual stream's width; inner: of heads and hidden channels (tp splits
    them). `products`: of those, results of products and attention, which selective recomputation keeps. scores: per head and key.
    inner_second: of inner, where every second product is recomputed too."""

    stream: float = 0
    inner: float = 0
    stream_products: float = 0
    inner_products: float = 0
    scores: float = 0
    inner_second: float = 0

    def plus(self, other: Kept) -> Kept:
        """The sum, part by part."""
        return Kept(*(a + b for a, b in zip(self, other)))


class Entry(NamedTuple):
    """One entry of a model, per token where it is not weights.

    vectors, matrices, tables, experts: parameters: norms and biases; matrices of the block; embedding and output matrix; routed experts.
    products, attention: forward operations; again: of the products, every second, as "alternate" recomputes them. kept: activations.
    joins: all-reduces of (tokens, d) that tp makes, forward and backward. routed: elements that go to experts and come back. qkvo: (query
    and output, key and value) elements that Ulysses exchanges, and the number of key-value heads. logits: whether it makes logits.
    """

    vectors: float = 0
    matrices: float = 0
    tables: float = 0
    experts: float = 0
    products: float = 0
    attention: float = 0
    again: float = 0
    kept: Kept = Kept()
    joins: int = 0
    routed: float = 0
    qkvo: tuple[float, float, int] = (0, 0, 0)
    logits: bool = False

    @property
    def parameters(self) -> float:
        """All of them."""
        return self.vectors + self.matrices + self.tables + self.experts


Stage = tuple[tuple[Entry, int], ...]
"""Distinct entries of a pipeline stage, each with how often it stands there."""


def counted(stage: Sequence[Entry]) -> Stage:
    """A stage's distinct entries with their numbers."""
    found = Counter(map(id, stage))
    return tuple((e, found[id(e)]) for e in {id(e): e for e in stage}.values())


def _mixer_kept(m: Mixer, d: int) -> tuple[Kept, tuple[float, float, int]]:
    if isinstance(m, Attention):
        qo, kv = m.heads * (m.head_dim + m.value_width), m.kv_heads * (m.head_dim + m.value_width)
        normed = (m.heads + m.kv_heads) * m.head_dim if m.qk_norm else 0
        gated = 2 * m.heads * m.value_width if m.gate else 0
        second = qo + m.kv_heads * m.value_width + gated / 2  # in order: q, not k, v, not the output
        return Kept(0, qo + kv + normed + gated, 0, qo + kv + gated / 2, m.heads, second), (qo, kv, m.kv_heads)
    if isinstance(m, MLA):
        qk = m.nope_dim + m.rope_dim
        qo, kv = m.heads * (qk + m.value_dim), m.heads * (qk + m.value_dim)
        latent = 2 * ((m.q_latent or 0) + m.kv_latent) + m.rope_dim
        return Kept(latent, qo + kv, latent / 2, qo + kv, m.heads, qo + kv), (qo, kv, m.heads)
    if isinstance(m, Compressed):
        inner, out = 3 * m.heads * m.head_dim, m.groups * m.group_dim
        narrow = 2 * (m.q_latent + m.head_dim)
        products = inner * 2 / 3 + out
        return Kept(narrow, inner + out, narrow / 2, products, m.heads, products), (inner * 2 / 3, 2 * m.head_dim, 1)
    if isinstance(m, Lightning):
        inner = m.heads * m.head_dim
        return Kept(0, 9 * inner, 0, 5 * inner, 0, 5 * inner), (2 * inner, 2 * inner, m.heads)
    if isinstance(m, Mamba2):
        inner, states = m.heads * m.head_dim, 2 * m.groups * m.state
        return Kept(0, 5 * inner + 3 * states, 0, 3 * inner + states, 0, 3 * inner + states), (3 * inner, states, m.groups)
    return Kept(), (0, 0, 0)


def _ffn_kept(f: FFN, d: int) -> Kept:
    """gate, act(gate), up and their product of a gated FFN; of experts k times that, with what they receive and return."""
    if isinstance(f, Gated):
        return Kept(0, 4 * f.hidden, 0, 2 * f.hidden, 0, f.hidden)
    if isinstance(f, Relu2):
        return Kept(0, 3 * f.hidden, 0, f.hidden, 0, f.hidden)
    if isinstance(f, MoE):
        k, width, one = f.router.select.k, f.latent or d, _ffn_kept(f.expert, d)
        moved = 2 * k * width + 2 * f.experts
        own = Kept(moved, k * one.inner, moved, k * one.inner_products, 0, k * one.inner_products)
        return own.plus(_ffn_kept(f.shared, d)) if f.shared else own
    return Kept()


def _again(layer: Layer, d: int) -> float:
    """Operations per token of the products that "alternate" recomputes: keys and output of attention, up of gated FFNs."""
    m, f = layer.mixer, layer.ffn
    ffn = f.shared if isinstance(f, MoE) else f
    out = 2.0 * d * ffn.hidden if isinstance(ffn, Gated) else 0.0
    return out + (2.0 * d * (m.kv_heads * m.head_dim + m.heads * m.value_width) if isinstance(m, Attention) else 0.0)


def _block(layer: Layer, d: int, attention: float) -> Entry:
    w = layer_weights(layer, d)
    f = layer.ffn
    experts, routed = 0, 0.0
    if isinstance(f, MoE):
        one = ffn_weights(f.expert, f.latent or d)
        experts, routed = f.experts * one.total, float(f.router.select.k * (f.latent or d))
    halves = (not isinstance(layer.mixer, Nothing)) + (not isinstance(f, Nothing))
    streams = layer.residual.streams if isinstance(layer.residual, HyperConnections) else 1
    norms = Kept(halves * d * (1 + streams), 0, halves * d * streams)
    mixer, qkvo = _mixer_kept(layer.mixer, d)
    expert_vectors = f.experts * ffn_weights(f.expert, f.latent or d).vectors if isinstance(f, MoE) else 0
    return Entry(
        vectors=w.vectors - expert_vectors,
        matrices=w.matrices - (experts - expert_vectors),
        experts=experts,
        products=2.0 * w.active,
        attention=attention,
        again=_again(layer, d),
        kept=norms.plus(mixer).plus(_ffn_kept(f, d)),
        joins=2 * halves,
        routed=routed,
        qkvo=qkvo,
    )


def entries(model: ModelConfig, length: int) -> list[Entry]:
    """Embedding, blocks bottom up, MTP modules, head. Their parameters sum to `model.params()`, operations without MTP to `flops`."""
    d, table = model.d_model, model.vocab * model.d_model
    out = [Entry(tables=table, kept=Kept(d, 0, d), joins=1)]
    index: Indexer | None = None
    made: dict[tuple[Layer, Indexer | None], Entry] = {}
    for name, repeat in model.pattern:
        layer = model.blocks[name]
        m = layer.mixer
        borrowed = isinstance(m, MLA) and isinstance(m.select, Reuse)
        if not borrowed:
            index = m.select if isinstance(m, MLA) and isinstance(m.select, Indexer) else index
        cost = _latent_flops(m, index, length, False) if isinstance(m, MLA) and borrowed else attention_flops(m, length)
        key = (layer, index if borrowed else None)
        made.setdefault(key, _block(layer, d, cost))
        out += [made[key]] * repeat
    if model.mtp:
        layer = model.blocks[model.mtp.block]
        one = _block(layer, d, attention_flops(layer.mixer, length))
        more = _collapse(layer, d)
        full = one._replace(
            matrices=one.matrices + more.matrices + 2 * d * d,
            vectors=one.vectors + more.vectors + 3 * d,
            products=one.products + 2.0 * (more.active + 2 * d * d + table),
            logits=True,
        )
        empty = full._replace(vectors=0, matrices=0, experts=0)
        out += [full] + [empty if model.mtp.shared else full] * (model.mtp.depth - 1)
    collapse = _collapse(next(model.layers()), d)
    tied = isinstance(model.head, Tied)
    out.append(
        Entry(
            vectors=d + collapse.vectors,
            matrices=collapse.matrices,
            tables=0 if tied else table,
            products=2.0 * (collapse.active + table),
            kept=Kept(2 * d, 0, d),
            joins=1,
            logits=True,
        )
    )
    return out
