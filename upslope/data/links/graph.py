"""From sketches of shards to edges, and from edges to clusters, with memory that does not grow with the number of keys.

Every shard's keys are on disk, sorted. The key space is gone through in ranges of about `KEYS` keys; in each, the slices of all shards
are merged and documents that share a key are paired. Pairs are weighed by their sketches at once, and only those that may be edges are
remembered. The texts of these are then copied, in one pass over the corpus, into a flat file that is mapped, not read, and verified.

A document's *place* is its row in the whole view (0 … rows − 1); a pair of places is one number, a << 32 | b, a < b.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, NamedTuple

from upslope.config import Config, UsageError
from upslope.data.protocol import Link
from upslope.machine.files import atomic, digest_file

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

    from upslope.data.artifacts import Corpus

BATCH = 512
KEYS = 1 << 21
PAIRS = 1 << 16
TEXTS = 1 << 11


class SketchShard(Config):
    """What a link remembers of a text shard: keys.npy (2, n) uint64, keys and rows, sorted; body.npy (rows, width); columns.parquet."""

    version: ClassVar[int] = 2

    link: Link
    link_version: int

    def __call__(self, shard: Path, out: Path) -> None:
        """shard: a text shard."""
        import numpy as np
        import pyarrow as pa
        import pyarrow.parquet as pq

        from upslope.data import shards

        keys, rows, bodies, columns, at = [np.empty(0, np.uint64)], [np.empty(0, np.uint64)], [], [], 0
        for batch in pq.ParquetFile(shard).iter_batches(batch_size=BATCH, columns=["url", "source", "text", "spans"]):
            found = self.link.sketch(batch)
            if len(found.body) != batch.num_rows:
                raise UsageError(f"link {self.link.column!r} gave {len(found.body)} bodies for {batch.num_rows} rows\nway out: one a row")
            keys.append(found.keys)
            rows.append(found.rows.astype(np.uint64) + np.uint64(at))
            bodies.append(found.body)
            if found.columns is not None:
                columns.append(found.columns)
            at += batch.num_rows
        both = np.stack([np.concatenate(keys), np.concatenate(rows)])
        _save(out / "keys.npy", both[:, np.lexsort((both[1], both[0]))])
        _save(out / "body.npy", np.concatenate(bodies) if bodies else np.empty((0, 0), np.uint8))
        if columns:
            step = f"{self.link.column}@{self.link_version}"
            shards.write(out / "columns.parquet", pa.Table.from_batches(columns), {"text": digest_file(shard), "step": step})


def _save(file: Path, array: np.ndarray) -> None:
    import numpy as np

    with atomic(file) as temporary, open(temporary, "wb") as f:
        np.save(f, array)


# ── candidates ────────────────────────────────────────────────────────────────────────────────────────────────────


def ranges(folders: Sequence[Path], alive: np.ndarray, starts: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(keys uint64, places int64) of living documents, sorted, one range of keys after the other; no key is in two ranges.

    alive: (rows of the view,) bool; starts: the place of each shard's first row.
    """
    import numpy as np

    total = sum(np.load(folder / "keys.npy", mmap_mode="r").shape[1] for folder in folders)
    parts = -(-total // KEYS)
    bounds = [np.uint64((i << 64) // parts) for i in range(1, parts)] if parts else []
    at = np.zeros(len(folders), np.int64)
    for part in range(parts):
        keys, places = [], []
        for shard, folder in enumerate(folders):
            both = np.load(folder / "keys.npy", mmap_mode="r")
            end = int(np.searchsorted(both[0], bounds[part])) if part < parts - 1 else both.shape[1]
            place = both[1, at[shard] : end].astype(np.int64) + starts[shard]
            lives = alive[place]
            keys.append(both[0, at[shard] : end][lives])
            places.append(place[lives])
            at[shard] = end
        key = np.concatenate(keys)
        order = np.argsort(key, kind="stable")  # places ascend from shard to shard, so equal keys stay in order of place
        yield key[order], np.concatenate(places)[order]


def groups(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where runs of at least two equal keys start and end, in sorted keys."""
    import numpy as np

    starts = np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1]])) if keys.size else np.empty(0, np.int64)
    ends = np.append(starts[1:], keys.size)
    shared = ends - starts > 1
    return starts[shared], ends[shared]


def candidates(keys: np.ndarray, places: np.ndarray, bucket: int, bodies: np.ndarray | None = None) -> Iterator[tuple[np.ndarray, int]]:
    """(pairs that share a key, uint64, sorted, each once a turn; how many buckets were too big), a bounded number a turn.

    All pairs of a bucket of at most `bucket` documents. In a bigger one, so that the work stays linear, each document is paired with the
    first, with the one before it, and with the one before it in the order of their bodies, in which copies are near one another.
    """
    import numpy as np

    from upslope.data.links import kernels

    starts, ends = groups(keys)
    size = ends - starts
    work = np.cumsum(np.where(size <= bucket, size * (size - 1) // 2, 2 * size))
    cuts: list[int] = (np.searchsorted(work, np.arange(PAIRS * 16, work[-1], PAIRS * 16)) + 1).tolist() if work.size else []
    for first, last in zip([0, *cuts], [*cuts, starts.size]):
        found = [kernels.pairs(places, starts[first:last], ends[first:last], bucket)]
        large = np.flatnonzero(size[first:last] > bucket) + first
        if bodies is not None and bodies.shape[1]:
            for g in large.tolist():
                members = np.unique(places[starts[g] : ends[g]])
                turn = int(keys[starts[g]] % np.uint64(bodies.shape[1]))
                near = members[np.lexsort(np.roll(bodies[members], turn, axis=1)[:, :8].T)]
                found.append(packed(near[1:], near[:-1]))
        yield np.unique(np.concatenate(found)), large.size


def packed(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Pairs of places as one number each, uint64, the smaller place first."""
    import numpy as np

    return (np.minimum(x, y).astype(np.uint64) << np.uint64(32)) | np.maximum(x, y).astype(np.uint64)


def unpacked(pairs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The two places of each pair, int64."""
    import numpy as np

    return (pairs >> np.uint64(32)).astype(np.int64), (pairs & np.uint64(0xFFFFFFFF)).astype(np.int64)


# ── edges ─────────────────────────────────────────────────────────────────────────────────────────────────────────


class Edges(NamedTuple):
    """pairs (n,) uint64, sorted, and their similarity (n,) float32; candidates: pairs that were measured; big: buckets over the limit."""

    pairs: np.ndarray
    similarity: np.ndarray
    candidates: int
    big: int


def search(link: Link, folders: Sequence[Path], view: Corpus, work: Path, bucket: int, stop: Callable[[], None]) -> Edges:
    """The edges that a link finds among the living documents of a view. folders: of `SketchShard`; work: for what is mapped from disk;
    stop: called now and then, may raise."""
    import numpy as np

    work.mkdir(parents=True, exist_ok=True)
    starts = np.cumsum([0, *(f.rows for f in view.files())])
    bodies = _bodies(folders, int(starts[-1]), work / "bodies.bin")
    slices = ranges(folders, view.kept(), starts[:-1])
    if link.dense:
        return _dense(link, slices, bodies, bucket, stop)
    slack, known, pending, big = link.slack, np.empty(0, np.uint64), [np.empty(0, np.uint64)], 0
    for keys, places in slices:
        for pairs, large in candidates(keys, places, bucket, bodies):
            stop()
            big += large
            pending.append(pairs if slack is None else pairs[_estimates(link, bodies, pairs) >= np.float32(link.least - slack)])
            if sum(map(len, pending)) > max(known.size, PAIRS):
                known, pending = np.unique(np.concatenate([known, *pending])), []
    known = np.unique(np.concatenate([known, *pending]))
    similarity = _estimates(link, bodies, known) if slack == 0 else _verified(link, view, known, work, stop)
    good = similarity >= np.float32(link.least)
    return Edges(known[good], similarity[good], known.size, big)


def _bodies(folders: Sequence[Path], rows: int, file: Path) -> np.ndarray:
    """The bodies of all shards as one mapped array (rows, width)."""
    import numpy as np

    first = np.load(folders[0] / "body.npy", mmap_mode="r") if folders else np.empty((0, 0), np.uint8)
    if not rows or not first.shape[1]:
        return np.empty((rows, first.shape[1]), first.dtype)
    with open(file, "wb") as f:
        for folder in folders:
            np.load(folder / "body.npy", mmap_mode="r").tofile(f)
    return np.memmap(file, first.dtype, "r", shape=(rows, first.shape[1]))


def _estimates(link: Link, bodies: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    import numpy as np

    out = np.empty(pairs.size, np.float32)
    for at in range(0, pairs.size, PAIRS):
        a, b = unpacked(pairs[at : at + PAIRS])
        out[at : at + PAIRS] = link.estimate(bodies[a], bodies[b])
    return out


def _verified(link: Link, view: Corpus, pairs: np.ndarray, work: Path, stop: Callable[[], None]) -> np.ndarray:
    import numpy as np

    a, b = unpacked(pairs)
    docs = view.docs()
    texts = Texts(view, np.union1d(a, b), work / "texts.bin")
    out = np.empty(pairs.size, np.float32)
    for at in range(0, pairs.size, TEXTS):
        stop()
        some = slice(at, at + TEXTS)
        out[some] = link.verify(texts, np.stack([docs[a[some]], docs[b[some]]], 1))
    return out


def _dense(link: Link, slices: Iterator[tuple[np.ndarray, np.ndarray]], bodies: np.ndarray, bucket: int, stop: Callable[[], None]) -> Edges:
    import numpy as np

    found, similarity, measured = [np.empty(0, np.uint64)], [np.empty(0, np.float32)], 0
    for keys, places in slices:
        for start, end in zip(*groups(keys)):
            stop()
            members = np.unique(places[start:end])
            i, j, s = link.within(bodies[members], bucket)
            found.append(packed(members[i], members[j]))
            similarity.append(s)
            measured += members.size * (members.size - 1) // 2
    pairs, at = np.unique(np.concatenate(found), return_index=True)
    return Edges(pairs, np.concatenate(similarity)[at], measured, 0)


class Texts(Mapping[int, str]):
    """The texts of some documents of a view, by document number, in a flat file that is mapped. places: (n,) int64, sorted."""

    def __init__(self, view: Corpus, places: np.ndarray, file: Path) -> None:
        import numpy as np
        import pyarrow as pa

        from upslope.data import hashing

        self._docs = view.docs()[places]
        sizes, at = [np.zeros(1, np.int64)], 0
        with open(file, "wb") as f:
            for number, shard in enumerate(view.files()):
                rows = places[np.searchsorted(places, at) : np.searchsorted(places, at + shard.rows)] - at
                at += shard.rows
                if rows.size:
                    for chunk in view.shard(number, ("text",))["text"].take(pa.array(rows)).chunks:
                        offsets, data = hashing.column(chunk)
                        data[offsets[0] : offsets[-1]].tofile(f)
                        sizes.append(np.diff(offsets))
        self._ends = np.cumsum(np.concatenate(sizes))
        self._data = np.memmap(file, np.uint8, "r") if self._ends[-1] else np.empty(0, np.uint8)

    def __getitem__(self, doc: int) -> str:
        import numpy as np

        i = int(np.searchsorted(self._docs, np.uint64(doc)))
        if i == len(self) or int(self._docs[i]) != doc:
            raise KeyError(doc)
        return bytes(self._data[self._ends[i] : self._ends[i + 1]]).decode()

    def __iter__(self) -> Iterator[int]:
        return iter(self._docs.tolist())

    def __len__(self) -> int:
        return int(self._docs.size)


def table(a: np.ndarray, b: np.ndarray, similarity: np.ndarray, kind: str) -> pa.Table:
    """Edges (`shards.EDGE`) between documents a < b, (n,) uint64."""
    import pyarrow as pa

    from upslope.data import shards

    return pa.table({"a": a, "b": b, "similarity": similarity, "kind": pa.repeat(kind, a.size)}, schema=shards.EDGE)


# ── clusters ──────────────────────────────────────────────────────────────────────────────────────────────────────


def components(count: int, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The connected component of each of `count` nodes, (count,) int64: the smallest node in it. a, b: ends of the edges."""
    import numpy as np

    from upslope.data.links import kernels

    parent = np.arange(count, dtype=np.int64)
    kernels.union(parent, np.asarray(a, np.int64), np.asarray(b, np.int64))
    kernels.roots(parent)
    return parent


def clusters(view: Corpus) -> tuple[np.ndarray, np.ndarray]:
    """(smallest document of its cluster (rows,) int64, documents in it (rows,) int32) for every row of a view, by all its edges between
    living documents; −1 and 0 for one that does not live."""
    import numpy as np

    docs, kept = view.docs(), view.kept()
    living = docs[kept]
    edges = view.edges()
    a, b = (np.searchsorted(docs, edges[end].to_numpy()) for end in ("a", "b"))
    both = kept[a] & kept[b] if a.size else np.zeros(0, bool)
    place = np.cumsum(kept) - 1
    component = components(living.size, place[a[both]], place[b[both]])
    sizes = np.bincount(component, minlength=living.size)[component]
    number, size = np.full(docs.size, -1, np.int64), np.zeros(docs.size, np.int32)
    number[kept], size[kept] = living[component].astype(np.int64), sizes
    return number, size
