"""minhash: near copies, by MinHash and locality-sensitive hashing, each pair verified.

k = bands × rows hashes; two texts of similarity s share a band, and so become candidates, with probability

    P(s) = 1 − (1 − s^rows)^bands          (32 × 8: P(0.8) = 0.997, P(0.7) = 0.85, P(0.5) = 0.12)

Candidates whose signatures agree in far too few positions are dropped (4 standard deviations: 3 in 10^5 true pairs); the Jaccard
similarity of all others is computed exactly, so that no edge is a guess.
Source: Broder 1997; Leskovec, Rajaraman, Ullman, "Mining of Massive Datasets", section 3.4.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from upslope.data.protocol import Link, Sketch
from upslope.machine import rng

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

DEVIATIONS = 4.0


class MinHash(Link):
    """Near copies: Jaccard similarity ≥ `threshold` of the sets of runs of `shingle` words (as `data.folding` defines a word) of the whole
    text, code and tables too. A text of fewer words is one run. bands × rows: how many hashes. seed: of the hash functions."""

    kind: ClassVar[str] = "minhash"
    version: ClassVar[int] = 2

    threshold: float = Field(default=0.8, gt=0, le=1)
    shingle: int = Field(default=5, ge=1)
    bands: int = Field(default=32, ge=1)
    rows: int = Field(default=8, ge=1)
    seed: int = 0

    @property
    def least(self) -> float:
        """`threshold`."""
        return self.threshold

    @property
    def slack(self) -> float:
        """Four standard deviations of the signature's estimate at the threshold."""
        return DEVIATIONS * (max(self.threshold * (1 - self.threshold), 0.01) / (self.bands * self.rows)) ** 0.5

    def hashes(self) -> tuple[np.ndarray, np.ndarray]:
        """The hash functions x → a·x + b mod 2^32: (a odd, b), each (bands × rows,) uint32."""
        import numpy as np

        draws = rng.rng(self.seed, "minhash").integers(0, 1 << 32, (2, self.bands * self.rows), dtype=np.uint32)
        return draws[0] | np.uint32(1), draws[1]

    def signatures(self, texts: pa.Array) -> tuple[np.ndarray, np.ndarray]:
        """(words of each text (n,) int64, signatures (n, bands × rows) uint32)."""
        from upslope.data import hashing

        return hashing.signatures(*hashing.column(texts), self.shingle, *self.hashes())

    def sketch(self, batch: pa.RecordBatch) -> Sketch:
        """One key a band and row that has words; body (rows, bands × rows) uint16, the low halves of the signature."""
        import numpy as np

        from upslope.data import hashing

        words, signatures = self.signatures(batch["text"])
        rows = np.flatnonzero(words)
        keys = hashing.band_keys(signatures[rows], self.rows)
        return Sketch(np.repeat(rows, self.bands), keys.ravel(), signatures.astype(np.uint16))

    def estimate(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """The share of positions in which the signatures agree: an unbiased estimate of the Jaccard similarity."""
        from upslope.data import hashing

        return hashing.agreements(a, b)

    def verify(self, texts: Mapping[int, str], pairs: np.ndarray) -> np.ndarray:
        """Jaccard similarity of the sets of shingles (their 64-bit hashes)."""
        import numpy as np
        import pyarrow as pa

        from upslope.data import hashing

        docs, at = np.unique(pairs, return_inverse=True)
        column = hashing.column(pa.array([texts[doc] for doc in docs.tolist()], pa.large_string()))
        at = at.reshape(pairs.shape).astype(np.int64)
        return hashing.jaccards(*hashing.shingle_sets(*column, self.shingle), at[:, 0].copy(), at[:, 1].copy())
