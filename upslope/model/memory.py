"""What each mixer must remember of a prefix, from the config alone; torch-free, read by the caches and by the cost formulas."""

from __future__ import annotations

import math
from typing import NamedTuple

from upslope.model.config import CSA, HCA, MLA, Attention, Compressed, Indexer, Lightning, Mamba2, Mixer, Own


class Field(NamedTuple):
    """One tensor of a cache. shape: of a column, or of the state.

    every: tokens per column; 0 = not columns but one state of fixed size. keep: tokens that must stay (None: all).
    """

    name: str
    shape: tuple[int, ...]
    every: int = 1
    keep: int | None = None

    def elements(self, tokens: int) -> int:
        """Elements held after `tokens` tokens."""
        size = math.prod(self.shape)
        if self.every == 0:
            return size
        return size * (min(tokens, self.keep or tokens) // self.every)


def fields(mixer: Mixer, d_model: int) -> tuple[Field, ...]:
    """The fields of a mixer's cache, in order."""
    m = mixer
    if isinstance(m, Attention):
        if not isinstance(m.kv, Own):
            return ()
        return Field("k", (m.kv_heads, m.head_dim), keep=m.window), Field("v", (m.kv_heads, m.value_width), keep=m.window)
    if isinstance(m, MLA):
        own = (Field("latent", (m.kv_latent,)), Field("rope_key", (m.rope_dim,)))
        return own + ((Field("index_key", (m.select.dim,)),) if isinstance(m.select, Indexer) else ())
    if isinstance(m, Compressed):
        window = Field("kv", (m.head_dim,), keep=m.window)
        h = m.history
        if isinstance(h, HCA):
            return window, Field("entries", (m.head_dim,), h.rate), Field("tail", (2 * m.head_dim,), keep=h.rate)
        if isinstance(h, CSA):
            entries = Field("entries", (m.head_dim,), h.rate), Field("index", (h.index_dim,), h.rate)
            return window, *entries, Field("tail", (4 * (m.head_dim + h.index_dim),), keep=2 * h.rate)
        return (window,)
    if isinstance(m, Lightning):
        return (Field("state", (m.heads, m.head_dim, m.head_dim), 0),)
    if isinstance(m, Mamba2):
        channels = m.heads * m.head_dim + 2 * m.groups * m.state
        return Field("conv", (channels, m.conv - 1), 0), Field("state", (m.heads, m.head_dim, m.state), 0)
    return ()
