"""Parameters and floating-point operations from the config alone; torch-free.

A matrix product of a (1, n) row with (n, m) is 2nm operations; training is three times the forward pass.
Attention at length T sees (T + 1) / 2 keys on average. Source: Kaplan et al. 2020, arXiv 2001.08361 §2.1, with attention counted.
"""

from __future__ import annotations

from upslope.model.config import Layer, ModelConfig, Tied


def layer_matrices(layer: Layer, d_model: int) -> int:
    """Weights in the matrices of one block."""
    m = layer.mixer
    attention = d_model * m.head_dim * (2 * m.heads + 2 * m.kv_heads)
    return attention + 3 * d_model * layer.ffn.hidden


def layer_gains(layer: Layer, d_model: int) -> int:
    """Weights in the norms of one block."""
    return 2 * d_model + (2 * layer.mixer.head_dim if layer.mixer.qk_norm else 0)


def params(config: ModelConfig, embedding: bool = True) -> int:
    """Number of parameters. embedding=False leaves the input embedding out (a tied one counts as the head)."""
    d, vocab = config.d_model, config.vocab
    total = sum(layer_matrices(layer, d) + layer_gains(layer, d) for layer in config.layers()) + d
    tied = isinstance(config.head, Tied)
    return total + vocab * d + (vocab * d if embedding and not tied else 0)


def flops(config: ModelConfig, length: int) -> float:
    """Forward operations per token at sequence length `length`: matrices, head and attention; norms and softmax left out."""
    d = config.d_model
    total = 2.0 * d * config.vocab
    for layer in config.layers():
        m = layer.mixer
        total += 2.0 * layer_matrices(layer, d) + 4.0 * m.heads * m.head_dim * (length + 1) / 2
    return total


def kv_bytes(config: ModelConfig, bytes_each: int = 4) -> int:
    """Cache bytes per token: Σ over layers of 2 · kv_heads · head_dim elements."""
    return sum(2 * layer.mixer.kv_heads * layer.mixer.head_dim * bytes_each for layer in config.layers())
