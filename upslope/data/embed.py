"""What an embedder is: texts → vectors of length one, whose inner product says how alike two texts are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from upslope.config import Open

if TYPE_CHECKING:
    import numpy as np


class Embedder(Open):
    """A function of each text alone: the same vector whatever texts come with it, and in whatever order.

    `version` must change when the vectors do. Outside data (weights, vocabularies) are `Source` fields.
    """

    home: ClassVar[str] = "upslope.data.embedders"
    version: ClassVar[int] = 1

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """(n, dim) float32, each row of Euclidean length 1; a row of zeros for a text with nothing in it. n may be 0."""
        raise NotImplementedError


def normalised(x: np.ndarray) -> np.ndarray:
    """Rows of (n, d) scaled to Euclidean length 1, as float32; rows of zeros stay."""
    import numpy as np

    length = np.sqrt(np.square(x, dtype=np.float64).sum(axis=1, keepdims=True))
    return np.asarray(x / np.where(length > 0, length, 1), np.float32)
