"""hashed: signed feature hashing of words, word pairs and character runs, straight into a sparse random projection.

    v(text) = Σ_f α_f · u_f / ‖u_f‖,    u_f = Σ_{x in f} ω(x) (1 + ln tf(x)) · e(x)

over the families f of features: words, pairs of neighbouring words, runs of four characters. e(x) has `spread` entries ±1/√spread, one
in each block of dim/spread positions, drawn from the feature's hash, so that E⟨e(x), e(y)⟩ = [x = y] and ⟨v, v'⟩ estimates the cosine
in feature space with standard deviation about 1/√dim. ω(word) = min(1, characters / 8) if `lengths`: short words are the frequent ones,
and nothing need be counted over a corpus. No outside files.

Source: Weinberger et al. 2009 (feature hashing); Kane and Nelson 2014 (sparse Johnson–Lindenstrauss, block construction).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field, model_validator

from upslope.data.embed import Embedder
from upslope.machine import rng

if TYPE_CHECKING:
    import numpy as np


class Hashed(Embedder):
    """words, pairs, chars: α of the families (0 leaves one out). dim: a multiple of spread. seed: of the projection."""

    kind: ClassVar[str] = "hashed"
    version: ClassVar[int] = 1

    dim: int = Field(default=256, ge=8)
    words: float = Field(default=1.0, ge=0)
    pairs: float = Field(default=0.5, ge=0)
    chars: float = Field(default=0.5, ge=0)
    lengths: bool = True
    spread: int = Field(default=8, ge=1)
    seed: int = 0

    @model_validator(mode="after")
    def _whole_blocks(self) -> Hashed:
        if self.dim % self.spread:
            raise ValueError(f"dim = {self.dim} is not a multiple of spread = {self.spread}")
        if not self.words + self.pairs + self.chars:
            raise ValueError("words, pairs and chars are all 0: there is nothing to embed")
        return self

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """(n, dim) float32. Case and accents do not count; a word is as in `data.folding`."""
        import numpy as np

        from upslope.data import features, folding
        from upslope.data.embed import normalised

        salt = np.uint64(rng.seed_of(self.seed, "hashed"))
        alpha = np.array([self.words, self.pairs, self.chars], np.float64)
        out = np.zeros((len(texts), self.dim), np.float64)
        for i, text in enumerate(texts):
            data = np.frombuffer(text.encode("utf-8", "replace"), np.uint8)
            features.project(data, folding.table(), alpha, self.lengths, salt, self.spread, out[i])
        return normalised(out)
