"""Links between copies: exact (equal after normalisation) and MinHash (verified Jaccard similarity of word shingles).

MinHash-LSH: k = bands × rows hashes; two texts of similarity s share a band, and so become candidates, with probability

    P(s) = 1 − (1 − s^rows)^bands          (32 × 8: P(0.8) = 0.997, P(0.7) = 0.85, P(0.5) = 0.12)

and every candidate is then measured exactly, so that no edge is a guess.
Source: Broder 1997; Leskovec, Rajaraman, Ullman, "Mining of Massive Datasets", section 3.4.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from upslope.config import Config
from upslope.data.protocol import Link
from upslope.machine import rng
from upslope.machine.files import atomic

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

BLANKS = re.compile(r"\s+")


def normal(text: str) -> str:
    """What makes two texts the same: NFC, case and runs of blanks do not count."""
    return BLANKS.sub(" ", (text if text.isascii() else unicodedata.normalize("NFC", text)).casefold()).strip()


class Exact(Link):
    """Texts that are equal once normalised (`normal`). Empty texts are copies of nothing."""

    kind: Literal["exact"] = "exact"

    def keys(self, batch: pa.RecordBatch) -> tuple[np.ndarray, np.ndarray]:
        """One key a row: xxh3 of the normalised text."""
        import numpy as np
        import xxhash

        ready = [(i, normal(text).encode("utf-8", "replace")) for i, text in enumerate(batch["text"].to_pylist())]
        found = [(i, xxhash.xxh3_64_intdigest(data)) for i, data in ready if data]
        return np.array([i for i, _ in found], np.int64), np.array([k for _, k in found], np.uint64)

    def verify(self, texts: Mapping[int, str], pairs: np.ndarray) -> np.ndarray:
        """1 where the normalised texts are equal, else 0."""
        import numpy as np

        ready = {doc: normal(texts[doc]) for doc in dict.fromkeys(pairs.ravel().tolist())}
        return np.array([float(ready[a] == ready[b]) for a, b in pairs.tolist()], np.float32)


class MinHash(Link):
    """Near copies: Jaccard similarity ≥ `threshold` of the sets of runs of `shingle` words (as `hashing.words` defines a word).

    bands × rows: how many hashes. seed: of the hash functions.
    """

    kind: Literal["minhash"] = "minhash"

    threshold: float = Field(default=0.8, gt=0, le=1)
    shingle: int = Field(default=5, ge=1)
    bands: int = Field(default=32, ge=1)
    rows: int = Field(default=8, ge=1)
    seed: int = 0

    def hashes(self) -> tuple[np.ndarray, np.ndarray]:
        """The hash functions x → a·x + b: (a odd, b), each (bands × rows,) uint64."""
        import numpy as np

        draws = rng.rng(self.seed, "minhash").integers(0, 1 << 64, (2, self.bands * self.rows), dtype=np.uint64)
        return draws[0] | np.uint64(1), draws[1]

    def signature(self, text: str) -> np.ndarray:
        """(bands × rows,) uint32."""
        from upslope.data import hashing

        return hashing.minhash(self.shingles(text), *self.hashes())

    def shingles(self, text: str) -> np.ndarray:
        """Hashes of the text's runs of words, uint64, with repetitions; empty without words."""
        import numpy as np

        from upslope.data import hashing

        data = text.encode("utf-8", "replace") if text.isascii() else text.casefold().encode("utf-8", "replace")
        return hashing.shingles(hashing.words(np.frombuffer(data, np.uint8)), self.shingle)

    def keys(self, batch: pa.RecordBatch) -> tuple[np.ndarray, np.ndarray]:
        """One key a band and row."""
        import numpy as np

        from upslope.data import hashing

        a, b = self.hashes()
        rows, keys = [], []
        for i, text in enumerate(batch["text"].to_pylist()):
            items = self.shingles(text)
            if items.size:
                keys.append(hashing.band_keys(hashing.minhash(items, a, b), self.rows))
                rows.append(np.full(self.bands, i, np.int64))
        if not rows:
            return np.empty(0, np.int64), np.empty(0, np.uint64)
        return np.concatenate(rows), np.concatenate(keys)

    def verify(self, texts: Mapping[int, str], pairs: np.ndarray) -> np.ndarray:
        """Jaccard similarity of the sets of shingles (their 64-bit hashes)."""
        import numpy as np

        from upslope.data import hashing

        sets = {doc: np.unique(self.shingles(texts[doc])) for doc in dict.fromkeys(pairs.ravel().tolist())}
        return np.array([hashing.jaccard(sets[a], sets[b]) for a, b in pairs.tolist()], np.float32)


AnyLink = Annotated[Exact | MinHash, Field(discriminator="kind")]


class KeyShard(Config):
    """The keys of a text shard: keys.npy, rows (n,) and keys (n,) as uint64 (2, n)."""

    version: ClassVar[int] = 1

    link: AnyLink
    link_version: int

    def __call__(self, shard: Path, out: Path) -> None:
        """shard: a text shard."""
        import numpy as np
        import pyarrow.parquet as pq

        rows, keys, at = [np.empty(0, np.uint64)], [np.empty(0, np.uint64)], 0
        for batch in pq.ParquetFile(shard).iter_batches(batch_size=512, columns=["text"]):
            row, key = self.link.keys(batch)
            rows.append(row.astype(np.uint64) + np.uint64(at))
            keys.append(key)
            at += batch.num_rows
        with atomic(out / "keys.npy") as temporary, open(temporary, "wb") as f:
            np.save(f, np.stack([np.concatenate(rows), np.concatenate(keys)]))


def candidates(docs: np.ndarray, keys: np.ndarray, bucket: int) -> tuple[np.ndarray, int]:
    """Pairs (a < b) of documents that share a key, (n, 2) uint64, sorted, each once; and how many buckets were too big.

    All pairs of a bucket of at most `bucket` documents; in a bigger one each document is paired with the first and with the one before
    it, so that the work stays linear (chains of copies still hang together).
    """
    import numpy as np

    order = np.lexsort((docs, keys))
    docs, keys = docs[order], keys[order]
    starts = np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1]])) if keys.size else np.empty(0, np.int64)
    ends = np.append(starts[1:], keys.size)
    found = [np.empty((0, 2), np.uint64)]
    big = 0
    for start, end in zip(starts[ends - starts > 1], ends[ends - starts > 1]):
        members = np.unique(docs[start:end])
        if members.size < 2:
            continue
        if members.size <= bucket:
            i, j = np.triu_indices(members.size, 1)
            found.append(np.stack([members[i], members[j]], 1))
        else:
            big += 1
            found.append(np.stack([members[:-1], members[1:]], 1))
            found.append(np.stack([np.full(members.size - 1, members[0]), members[1:]], 1))
    return np.unique(np.concatenate(found), axis=0), big


def components(count: int, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The connected component of each of `count` nodes, (count,) int64: the smallest node in it. a, b: ends of the edges."""
    import numpy as np

    parent = list(range(count))

    def root(x: int) -> int:
        while parent[x] != x:
            parent[x] = parent[parent[x]]
            x = parent[x]
        return x

    for x, y in zip(a.tolist(), b.tolist()):
        rx, ry = root(x), root(y)
        if rx != ry:
            parent[max(rx, ry)] = min(rx, ry)
    return np.array([root(x) for x in range(count)], np.int64)
