"""What a model costs, from its config alone and torch-free: parameters, operations per token, cache and weight bytes.

A product of a (1, n) row with an (n, m) matrix is 2nm operations; training is three times the forward pass. Norms, rotations, softmax and
the mixing of residual streams are left out. Sources: Kaplan et al. 2020, arXiv 2001.08361 §2.1, with attention counted; each mechanism's
source is in `model.config`.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

from upslope.model.config import (
    CSA,
    FFN,
    HCA,
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
    Own,
    PostNorm,
    PreNorm,
    Relu2,
    Reuse,
    Tied,
)
from upslope.model.memory import fields

Precision = Literal["fp32", "bf16", "fp8", "mxfp4", "nvfp4"]
BYTES: dict[Precision, float] = {"fp32": 4, "bf16": 2, "fp8": 1 + 4 / 128**2, "mxfp4": 0.5 + 1 / 32, "nvfp4": 0.5 + 1 / 16}
"""Bytes per weight of a matrix, scales included: one float32 per 128 × 128 (DeepSeek-V3), a byte per 32 (MX), a byte per 16 (NVFP4)."""


class Weights(NamedTuple):
    """matrices: weights in matrix products. active: those of them that one token meets. vectors: norms, biases, gates, tables."""

    matrices: int = 0
    active: int = 0
    vectors: int = 0

    def plus(self, other: Weights) -> Weights:
        """The sum, part by part."""
        return Weights(*(a + b for a, b in zip(self, other)))

    @property
    def total(self) -> int:
        """All weights."""
        return self.matrices + self.vectors


def _all(matrices: int, vectors: int = 0) -> Weights:
    return Weights(matrices, matrices, vectors)


def mixer_weights(m: Mixer, d: int) -> Weights:
    """Weights of a mixer at width d."""
    if isinstance(m, Attention):
        q, k, v = m.heads * m.head_dim, m.kv_heads * m.head_dim, m.kv_heads * m.value_width
        out, makes = m.heads * m.value_width, isinstance(m.kv, Own)
        biases = {"none": 0, "qkv": q + makes * (k + v), "all": q + makes * (k + v) + d}[m.bias]
        full = m.qk_norm is not None and m.qk_norm.over == "full"
        norms = 0 if m.qk_norm is None else (q + makes * k if full else (1 + makes) * m.head_dim)
        return _all(d * (q + makes * (k + v) + (1 + m.gate) * out), biases + norms + m.sinks * m.heads)
    if isinstance(m, MLA):
        q_in, qk = m.q_latent or d, m.nope_dim + m.rope_dim
        own = _all(
            (d * m.q_latent if m.q_latent else 0)
            + q_in * m.heads * qk
            + d * (m.kv_latent + m.rope_dim)
            + m.kv_latent * m.heads * (m.nope_dim + m.value_dim)
            + m.heads * m.value_dim * d,
            (m.q_latent or 0) + m.kv_latent,
        )
        if isinstance(m.select, Indexer):
            own = own.plus(_all(q_in * m.select.heads * m.select.dim + d * (m.select.dim + m.select.heads), 2 * m.select.dim))
        return own
    if isinstance(m, Compressed):
        inner, h = m.heads * m.head_dim, m.history
        own = _all(d * m.q_latent + m.q_latent * inner + d * m.head_dim + inner * m.group_dim + m.groups * m.group_dim * d)
        own = own.plus(_all(0, m.q_latent + m.head_dim + m.heads))
        if isinstance(h, HCA):
            own = own.plus(_compressor(d, m.head_dim, m.head_dim, h.rate))
        if isinstance(h, CSA):
            own = own.plus(_compressor(d, 2 * m.head_dim, m.head_dim, h.rate)).plus(_compressor(d, 2 * h.index_dim, h.index_dim, h.rate))
            own = own.plus(_all(m.q_latent * h.index_heads * h.index_dim + d * h.index_heads))
        return own
    if isinstance(m, Lightning):
        return _all(5 * d * m.heads * m.head_dim, m.heads * m.head_dim)
    if isinstance(m, Mamba2):
        inner, channels = m.heads * m.head_dim, m.heads * m.head_dim + 2 * m.groups * m.state
        return _all(d * (inner + channels + m.heads) + inner * d, channels * (m.conv + 1) + 3 * m.heads + inner)
    return Weights()


def _compressor(d: int, width: int, out: int, rate: int) -> Weights:
    return _all(2 * d * width, rate * width + out)


def ffn_weights(f: FFN, d: int) -> Weights:
    """Weights of a channel mixer at width d."""
    if isinstance(f, Gated):
        return _all(3 * d * f.hidden, (2 * f.hidden + d) * f.bias)
    if isinstance(f, Relu2):
        return _all(2 * d * f.hidden)
    if isinstance(f, MoE):
        one = ffn_weights(f.expert, f.latent or d)
        routed = Weights(f.experts * one.matrices, f.router.select.k * one.matrices, f.experts * one.vectors)
        own = _all(d * f.experts + (2 * d * f.latent if f.latent else 0), f.experts * f.router.bias)
        return routed.plus(own).plus(ffn_weights(f.shared, d) if f.shared else Weights())
    return Weights()


def _halves(layer: Layer) -> int:
    return (not isinstance(layer.mixer, Nothing)) + (not isinstance(layer.ffn, Nothing))


def layer_weights(layer: Layer, d: int) -> Weights:
    """Weights of one block: both halves, their norms, and the coefficients of hyper-connections."""
    norms = d * (1 if isinstance(layer.norm, PreNorm | PostNorm) else 2)
    each = _all(0, norms)
    if isinstance(layer.residual, HyperConnections):
        n = layer.residual.streams
        each = each.plus(_all((n * n + 2 * n) * n * d, n * n + 2 * n + 3))
    own = mixer_weights(layer.mixer, d).plus(ffn_weights(layer.ffn, d))
    for _ in range(_halves(layer)):
        own = own.plus(each)
    return own


def _collapse(layer: Layer, d: int) -> Weights:
    r = layer.residual
    return _all(r.streams * r.streams * d, r.streams + 1) if isinstance(r, HyperConnections) else Weights()


def trunk(config: ModelConfig) -> Weights:
    """Blocks and final norm, without embedding, head and MTP."""
    own = _all(0, config.d_model)
    for name, repeat in config.pattern:
        one = layer_weights(config.blocks[name], config.d_model)
        own = own.plus(Weights(*(repeat * part for part in one)))
    return own.plus(_collapse(next(config.layers()), config.d_model))


def mtp(config: ModelConfig) -> Weights:
    """The modules of multi-token prediction."""
    if config.mtp is None:
        return Weights()
    d, layer = config.d_model, config.blocks[config.mtp.block]
    one = layer_weights(layer, d).plus(_collapse(layer, d)).plus(_all(2 * d * d, 3 * d))
    return Weights(*((1 if config.mtp.shared else config.mtp.depth) * part for part in one))


def params(config: ModelConfig, embedding: bool = True) -> int:
    """Number of parameters, MTP included. embedding=False leaves the input embedding out (a tied one counts as the head)."""
    table = config.vocab * config.d_model
    return trunk(config).total + mtp(config).total + table + (table if embedding and not isinstance(config.head, Tied) else 0)


def published(config: ModelConfig) -> tuple[int, int]:
    """(total, active) parameters as labs count them: without MTP; an untied embedding counts twice in both."""
    t, table = trunk(config), config.vocab * config.d_model * (1 if isinstance(config.head, Tied) else 2)
    return t.total + table, t.active + t.vectors + table


def attention_flops(m: Mixer, length: int, last: bool = False) -> float:
    """Forward operations of a mixer per token that do not come from weights: mean over a sequence of `length`, or of its last token."""
    if isinstance(m, Attention):
        return 2.0 * m.heads * (m.head_dim + m.value_width) * _seen(length, last, m.window)
    if isinstance(m, MLA):
        index = m.select if isinstance(m.select, Indexer) else None
        return _latent_flops(m, index, length, last) + (2.0 * index.heads * index.dim * _seen(length, last) if index else 0.0)
    if isinstance(m, Compressed):
        h, keys = m.history, _seen(length, last, m.window)
        index_flops = 0.0
        if isinstance(h, HCA):
            keys += _seen(length, last, every=h.rate)
        if isinstance(h, CSA):
            keys += _seen(length, last, h.top_k if h.stage == "sparse" else None, h.rate)
            index_flops = 2.0 * h.index_heads * h.index_dim * _seen(length, last, every=h.rate)
        return 4.0 * m.heads * m.head_dim * keys + index_flops
    if isinstance(m, Lightning):
        return 4.0 * m.heads * m.head_dim**2
    if isinstance(m, Mamba2):
        channels = m.heads * m.head_dim + 2 * m.groups * m.state
        return 5.0 * m.heads * m.head_dim * m.state + 2.0 * channels * m.conv
    return 0.0


def _latent_flops(m: MLA, index: Indexer | None, length: int, last: bool) -> float:
    """Latent attention over all tokens, or over those that an indexer, its own or one below, has chosen."""
    keys = _seen(length, last, index.top_k if index and index.stage == "sparse" else None)
    return 2.0 * m.heads * (m.nope_dim + m.rope_dim + m.value_dim) * keys


def _seen(length: int, last: bool, most: int | None = None, every: int = 1) -> float:
    """Keys that a query sees when `every` tokens make one and it sees `most`: mean over t = 1 … length of min(t // every, most), or at t =
    length."""
    top = length // every if most is None else min(most, length // every)
    return float(top) if last else (every * top * (top - 1) / 2 + top * (length - top * every + 1)) / length


def flops(config: ModelConfig, length: int, last: bool = False) -> float:
    """Forward operations per token: matrices that the token meets, head, attention and states.

    Mean over a sequence of `length` tokens (training, prefill); last = True: of its last token alone (decoding at that length).
    """
    total = 2.0 * (trunk(config).active + config.d_model * config.vocab)
    index: Indexer | None = None
    for layer in config.layers():
        m = layer.mixer
        if isinstance(m, MLA) and isinstance(m.select, Reuse):
            total += _latent_flops(m, index, length, last)
        else:
            index = m.select if isinstance(m, MLA) and isinstance(m.select, Indexer) else index
            total += attention_flops(m, length, last)
    return total


def cache_elements(config: ModelConfig, length: int) -> int:
    """Elements that the caches of one sequence of `length` tokens hold: columns and states."""
    d = config.d_model
    return sum(f.elements(length) for layer in config.layers() for f in fields(layer.mixer, d))


def kv_bytes(config: ModelConfig, length: int = 1, bytes_each: int = 4) -> int:
    """Cache bytes of one sequence of `length` tokens, states included."""
    return cache_elements(config, length) * bytes_each


def weight_bytes(config: ModelConfig, precision: Precision) -> float:
    """Bytes of all weights: matrices of blocks at a precision; embedding, head and vectors in bf16 where that is narrower than fp32."""
    own = trunk(config).plus(mtp(config))
    rest = params(config) - own.matrices
    return own.matrices * BYTES[precision] + rest * (4 if precision == "fp32" else 2)
