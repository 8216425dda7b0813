"""semantic: texts that say the same in other words, by embeddings (SemDeDup), and how typical each is of its cell (D4).

Embeddings x are put into the cells of spherical k-means (centroids c of length 1, fitted on a sample); within a cell, two documents are
linked if cos(x, x') ≥ 1 − eps. The columns say, for a curation:

    semantic.cosine = cos(x, c of its cell)        SemDeDup keeps the least typical of a group: winner = "semantic.cosine, doc"
    semantic.rank   = share of the sample with a smaller cosine      D4: rule "semantic.rank <= 0.8" drops the most typical fifth

D4 fits again on what SemDeDup has left: a second dedup stage, after a curation, with this link alone; it looks at living documents only.
Source: Abbas et al. 2023 (SemDeDup, arXiv 2303.09540); Tirumala et al. 2023 (D4, arXiv 2308.12284); Sorscher et al. 2022 (prototypes).
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from upslope.config import Source, UsageError
from upslope.data.embed import Embedder
from upslope.data.embedders.hashed import Hashed
from upslope.data.protocol import Link, Sketch
from upslope.machine.files import atomic, digest_file

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

    from upslope.data.artifacts import Corpus
    from upslope.machine.context import Context

BLOCK = 512
STEPS = 1000


class Semantic(Link):
    """eps: 1 − the cosine from which on two texts are copies. cells: k of k-means; 0 takes the square root of the number of living
    documents. sample: how many documents k-means is fitted on, those whose texts hash lowest under `seed`. rounds: of k-means at most."""

    kind: ClassVar[str] = "semantic"
    version: ClassVar[int] = 1
    gives: ClassVar[Mapping[str, str]] = {"cell": "int32", "cosine": "float32", "rank": "float32"}
    dense: ClassVar[bool] = True

    embedder: Embedder = Hashed()
    eps: float = Field(default=0.1, gt=0, lt=1)
    cells: int = Field(default=0, ge=0)
    sample: int = Field(default=100_000, ge=1)
    rounds: int = Field(default=20, ge=1)
    seed: int = 0

    def bind(self, ctx: Context, view: Corpus) -> Link:
        """Fits the centroids on a sample of the living documents and gives the link that reads them."""
        import numpy as np

        x = sampled(view, self.embedder, self.sample, self.seed)
        x = x[np.any(x != 0, axis=1)]
        count = min(self.cells or max(1, round(len(view) ** 0.5)), max(1, len(x)))
        centroids = kmeans(x, count, self.rounds) if len(x) else np.zeros((1, x.shape[1]), np.float32)
        cosines = nearest(x, centroids)[1] if len(x) else np.zeros(1, np.float32)
        file = ctx.work / f"cells-{self.column}.npz"
        with atomic(file) as temporary, open(temporary, "wb") as f:
            np.savez(f, centroids=centroids, quantiles=np.quantile(cosines, np.linspace(0, 1, STEPS + 1)).astype(np.float32))
        ctx.fact(**{self.column: {"cells": len(centroids), "sample": len(x)}})
        found = Source(uri=str(file), digest=digest_file(file))
        return BoundSemantic(embedder=self.embedder, eps=self.eps, centroids=found)


class BoundSemantic(Link):
    """`Semantic` with its centroids and the quantiles of the sample's cosines in one file."""

    kind: ClassVar[str] = "semantic_cells"
    version: ClassVar[int] = Semantic.version
    gives: ClassVar[Mapping[str, str]] = Semantic.gives
    dense: ClassVar[bool] = True

    embedder: Embedder
    eps: float
    centroids: Source

    @property
    def column(self) -> str:
        """As the link that was bound."""
        return Semantic.kind

    @property
    def least(self) -> float:
        """1 − eps."""
        return 1 - self.eps

    @property
    def slack(self) -> float:
        """0: embeddings are compared, not texts."""
        return 0.0

    def sketch(self, batch: pa.RecordBatch) -> Sketch:
        """One key a row that has a vector, its cell; body (rows, dim) float32, the vectors."""
        import numpy as np
        import pyarrow as pa

        x = np.asarray(self.embedder(batch["text"].fill_null("").to_pylist()), np.float32)
        if x.ndim != 2 or len(x) != batch.num_rows or not np.isfinite(x).all():
            raise UsageError(
                f"embedder {self.embedder!r} gave {x.shape} for {batch.num_rows} texts\nway out: one row of finite numbers each"
            )
        path = self.centroids.path()
        centroids, quantiles = _cells(str(path), self.centroids.digest or digest_file(path))
        cell, cosine = nearest(x, centroids)
        empty = ~np.any(x != 0, axis=1)
        rank = np.searchsorted(quantiles, cosine, "left").astype(np.float32) / np.float32(STEPS + 1)
        columns = {"cell": pa.array(cell, mask=empty), "cosine": pa.array(cosine, mask=empty), "rank": pa.array(rank, mask=empty)}
        rows = np.flatnonzero(~empty)
        return Sketch(rows, _spread(cell[rows]), x, pa.RecordBatch.from_pydict(columns))

    def estimate(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """cos(a, b), row by row."""
        import numpy as np

        return np.einsum("ij,ij->i", a, b, dtype=np.float64).astype(np.float32)

    def within(self, bodies: np.ndarray, bucket: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The pairs of a cell with cosine ≥ 1 − eps. Where a document has more than `bucket` earlier copies, only edges that join what
        would hang apart without them are kept beyond."""
        import numpy as np

        from upslope.data.links import kernels

        x = np.asarray(bodies, np.float32)
        parent = np.arange(len(x))
        first, second, similar = [np.empty(0, np.int64)], [np.empty(0, np.int64)], [np.empty(0, np.float32)]
        for at in range(0, len(x), BLOCK):
            j, i = np.nonzero(x[at : at + BLOCK] @ x[: at + BLOCK].T >= self.least - 1e-3)  # in order of j, then i
            j += at
            i, j = i[i < j], j[i < j]
            exact = self.estimate(x[i], x[j])
            good = exact >= np.float32(self.least)
            i, j, exact = i[good], j[good], exact[good]
            few = kernels.sparse_edges(parent, i, j, bucket)
            first.append(i[few])
            second.append(j[few])
            similar.append(exact[few])
        return np.concatenate(first), np.concatenate(second), np.concatenate(similar)


def sampled(view: Corpus, embedder: Embedder, size: int, seed: int) -> np.ndarray:
    """The vectors (n, dim) of the living texts whose hashes are lowest, in order of hash: the same whatever the shards and their order."""
    import numpy as np
    import xxhash

    def hashed(texts: list[str]) -> np.ndarray:
        return np.array([xxhash.xxh3_64_intdigest(t.encode(), seed & 0xFFFFFFFFFFFFFFFF) for t in texts], np.uint64)

    hashes = np.concatenate([np.empty(0, np.uint64), *(hashed(b["text"].to_pylist()) for b in view.batches(("text",)))])
    limit = np.partition(hashes, size - 1)[size - 1] if hashes.size > size else np.uint64(0xFFFFFFFFFFFFFFFF)
    vectors, found, at = [embedder([])], [np.empty(0, np.uint64)], 0
    for batch in view.batches(("text",)):
        mine = hashes[at : at + batch.num_rows]
        at += batch.num_rows
        rows = np.flatnonzero(mine <= limit)
        vectors.append(embedder(batch["text"].take(rows).to_pylist()))
        found.append(mine[rows])
    return np.concatenate(vectors)[np.argsort(np.concatenate(found), kind="stable")[:size]]


def kmeans(x: np.ndarray, k: int, rounds: int) -> np.ndarray:
    """Spherical k-means: centroids (k, dim) float32 of length 1 that raise Σ_i max_c cos(x_i, c), for x (n, dim) of length 1.

    Starts at the first k distinct rows (which are in random order); each round assigns, in batches, and takes the direction of each
    cell's sum; an empty cell moves to the row that is worst served. Ends when no row changes its cell, or after `rounds`.
    Source: Dhillon and Modha 2001.
    """
    import numpy as np

    from upslope.data.embed import normalised

    _, at = np.unique(x, axis=0, return_index=True)
    centroids = x[np.sort(at)[:k]]
    if len(centroids) < k:
        return centroids
    before = np.full(len(x), -1, np.int32)
    for _ in range(rounds):
        cell, cosine = nearest(x, centroids)
        if (cell == before).all():
            break
        before = cell
        sums = np.zeros(centroids.shape, np.float64)
        np.add.at(sums, cell, x)
        empty = np.flatnonzero(np.bincount(cell, minlength=k) == 0)
        sums[empty] = x[np.argsort(cosine, kind="stable")[: empty.size]]
        centroids = normalised(sums)
    return centroids


def nearest(x: np.ndarray, centroids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(cell (n,) int32 of the largest cosine, the first of equal ones; that cosine (n,) float32). In double precision, so that the
    result for a row does not depend on the rows beside it."""
    import numpy as np

    cell, cosine = np.zeros(len(x), np.int32), np.zeros(len(x), np.float32)
    wide = centroids.T.astype(np.float64)
    for at in range(0, len(x), BLOCK):
        found = x[at : at + BLOCK].astype(np.float64) @ wide
        best = found.argmax(axis=1)
        cell[at : at + BLOCK] = best
        cosine[at : at + BLOCK] = np.clip(found[np.arange(len(found)), best], -1, 1)
    return cell, cosine


def _spread(cell: np.ndarray) -> np.ndarray:
    """Cells as keys that are spread over the whole range of uint64."""
    import numpy as np

    return (cell.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)


@lru_cache(maxsize=2)
def _cells(path: str, digest: str) -> tuple[np.ndarray, np.ndarray]:
    import numpy as np

    with np.load(path) as f:
        return f["centroids"], f["quantiles"]
