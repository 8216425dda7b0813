"""exact: texts that are equal once normalised."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from upslope.data.protocol import Link, Sketch

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

BLANKS = re.compile(r"\s+")


def normal(text: str) -> str:
    """What makes two texts the same: NFC, case and runs of blanks do not count."""
    return BLANKS.sub(" ", _composed(text)).strip()


def _composed(text: str) -> str:
    return (text if text.isascii() else unicodedata.normalize("NFC", text)).casefold()


class Exact(Link):
    """Texts that are equal once normalised (`normal`): the 128-bit xxh3 of it is what is compared. Empty texts are copies of nothing."""

    kind: ClassVar[str] = "exact"
    version: ClassVar[int] = 2

    @property
    def slack(self) -> float:
        """0: equal digests are equal texts (up to 2^-128 a pair)."""
        return 0.0

    def sketch(self, batch: pa.RecordBatch) -> Sketch:
        """One key a row; body (rows, 2) uint64, the digest."""
        import numpy as np
        import pyarrow as pa
        import pyarrow.compute as pc

        from upslope.data import hashing

        texts = batch["text"].fill_null("")
        plain = np.asarray(pc.string_is_ascii(texts).to_numpy(zero_copy_only=False), bool)
        body = np.zeros((batch.num_rows, 2), np.uint64)
        filled = np.zeros(batch.num_rows, bool)
        others = pa.array([_composed(t) for t in texts.filter(pa.array(~plain)).to_pylist()], pa.large_string())
        for rows, part in ((plain, texts.filter(pa.array(plain))), (~plain, others)):
            body[rows], filled[rows] = digests(*hashing.column(part))
        at = np.flatnonzero(filled)
        return Sketch(at, body[at, 0], body)

    def estimate(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """1 where the digests are equal, else 0."""
        import numpy as np

        return (a == b).all(axis=1).astype(np.float32)

    def verify(self, texts: Mapping[int, str], pairs: np.ndarray) -> np.ndarray:
        """1 where the normalised texts are equal, else 0."""
        import numpy as np

        ready = {doc: normal(texts[doc]) for doc in dict.fromkeys(pairs.ravel().tolist())}
        return np.array([float(ready[a] == ready[b]) for a, b in pairs.tolist()], np.float32)


def digests(offsets: np.ndarray, data: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(digests (rows, 2) uint64 of case-folded texts, whether each has anything in it)."""
    import numpy as np
    import xxhash

    from upslope.data.links import kernels

    starts, squeezed = kernels.squeeze(offsets, data)
    ends = starts.tolist()
    found = b"".join(xxhash.xxh3_128_digest(squeezed[i:j].data) for i, j in zip(ends, ends[1:]))
    return np.frombuffer(found, np.uint64).reshape(-1, 2), np.diff(starts) > 0
