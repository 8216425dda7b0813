"""skeleton: pages that are one template filled in anew.

On a host with n pages, a line that is on more than max(`pages`, `share` · n) of them belongs to its template, as it stands or with its
slots open (see `links.lines`; a line that is all slots does not). The *skeleton* of a page is the sequence of its template lines, with
every run of other lines as one gap. Two pages of a host with the same skeleton, on both of which at least 1 − `slot` of the bytes are
the template's (whole lines, or what of a line is not in slots), are linked; their similarity is the smaller of the two shares.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from upslope.config import Source
from upslope.data.protocol import Link, Sketch
from upslope.machine.context import Context, Shard
from upslope.machine.files import atomic, digest_file

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

    from upslope.data.artifacts import Corpus
    from upslope.data.links.lines import Lines

HOST = re.compile(r"[a-z][a-z0-9+.\-]*://(?:[^/?#@]*@)?(?:www\.)?(\[[^\]]*\]|[^/:?#]*)", re.IGNORECASE)


class Skeleton(Link):
    """Templated pages of a host (of a source, where the URL names no host). Living pages count, copies of a text once.

    slot: the largest share of bytes outside the template. share, pages: what makes a line template. The column skeleton.share is the
    template's share of a page's bytes (NULL for an empty one), skeleton.lines how many of its lines are template.
    """

    kind: ClassVar[str] = "skeleton"
    version: ClassVar[int] = 1
    gives: ClassVar[Mapping[str, str]] = {"share": "float32", "lines": "int32"}

    slot: float = Field(default=0.3, ge=0, lt=1)
    share: float = Field(default=0.3, ge=0, lt=1)
    pages: int = Field(default=3, ge=1)

    def bind(self, ctx: Context, view: Corpus) -> Link:
        """Counts the lines of every host and gives the link that knows the templates."""
        return BoundSkeleton(slot=self.slot, templates=templates(ctx, view, self.share, self.pages, self.column))


class BoundSkeleton(Link):
    """`Skeleton` with the lines that are template in one file: sorted hashes of (host, line), uint64."""

    kind: ClassVar[str] = "skeleton_templates"
    version: ClassVar[int] = Skeleton.version
    gives: ClassVar[Mapping[str, str]] = Skeleton.gives

    slot: float
    templates: Source

    @property
    def column(self) -> str:
        """As the link that was bound."""
        return Skeleton.kind

    @property
    def least(self) -> float:
        """1 − slot."""
        return 1 - self.slot

    @property
    def slack(self) -> float:
        """0: skeletons are compared, not texts."""
        return 0.0

    def sketch(self, batch: pa.RecordBatch) -> Sketch:
        """One key a row that is mostly template, its skeleton; body (rows, 2) uint64: the skeleton, and the bits of the share."""
        import numpy as np

        skeletons, columns = measured(batch, self.templates)
        share = columns["share"].to_numpy(zero_copy_only=False)
        rows = np.flatnonzero(share >= np.float32(self.least))
        body = np.stack([skeletons, share.view(np.uint32).astype(np.uint64)], 1)
        return Sketch(rows, skeletons[rows], body, columns)

    def estimate(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """The smaller share of template bytes where the skeletons are the same, else 0."""
        import numpy as np

        shares = [x[:, 1].astype(np.uint32).view(np.float32) for x in (a, b)]
        return np.where(a[:, 0] == b[:, 0], np.minimum(*shares), np.float32(0))


class LineKeys(Link):
    """The lines of every page, for counting, as a link's keys: hashes of (host, line) and of (host, line with open slots), each once a
    page. body (rows, 2) uint64: the hash of the host, and of host and text."""

    kind: ClassVar[str] = "skeleton_lines"
    version: ClassVar[int] = 1

    def sketch(self, batch: pa.RecordBatch) -> Sketch:
        """See the class."""
        import numpy as np

        from upslope.data import hashing
        from upslope.data.links.exact import digests
        from upslope.data.links.lines import lines

        column = hashing.column(batch["text"])
        hosts, found = host_hashes(batch), lines(*column)
        whole, typed = _keyed(hosts, found)
        keys, row = np.concatenate([whole, typed]), np.tile(found.row, 2)
        order = np.lexsort((keys, row))
        keys, row = keys[order], row[order]
        new = (keys > 0) & np.concatenate([[True], (keys[1:] != keys[:-1]) | (row[1:] != row[:-1])])[: keys.size]
        text = digests(*column)[0][:, 0]
        return Sketch(row[new], keys[new], np.stack([hosts, hosts ^ text], 1))


def hosts_of(batch: pa.RecordBatch) -> list[str]:
    """The host of each row's URL, in lower case and without `www.`; its source, where the URL names none."""
    found = zip(batch["url"].to_pylist(), batch["source"].to_pylist())
    matches = ((HOST.match(url or ""), source) for url, source in found)
    return [m[1].lower() if m and m[1] else source or "" for m, source in matches]


def host_hashes(batch: pa.RecordBatch) -> np.ndarray:
    """A hash of each row's host, (rows,) uint64."""
    import numpy as np
    import xxhash

    return np.array([xxhash.xxh3_64_intdigest(h.encode()) for h in hosts_of(batch)], np.uint64)


def _keyed(hosts: np.ndarray, found: Lines) -> tuple[np.ndarray, np.ndarray]:
    """Hashes of (host, line) and of (host, line with open slots), 0 for a line that is all slots or has none."""
    import numpy as np

    host = hosts[found.row]
    slotted = (found.literals > 0) & (found.slots > 0)
    salted = found.typed ^ host ^ np.uint64(0x9E3779B97F4A7C15)
    return (found.exact ^ host) | np.uint64(1), np.where(slotted, salted | np.uint64(1), np.uint64(0))


def _skeletons(hosts: np.ndarray, row: np.ndarray, line: np.ndarray) -> np.ndarray:
    """The hash of each row's sequence of template lines, runs of others (0) as one gap, (rows,) uint64."""
    import numpy as np

    from upslope.data.links import kernels

    first = np.concatenate([[True], row[1:] != row[:-1]]) if row.size else np.empty(0, bool)
    repeated = np.concatenate([[False], line[1:] == line[:-1]]) if row.size else np.empty(0, bool)
    kept = first | (line != 0) | ~repeated
    out = hosts.copy()
    kernels.chain(out, row[kept], line[kept])
    return out


def measured(batch: pa.RecordBatch, templates: Source) -> tuple[np.ndarray, pa.RecordBatch]:
    """(the skeletons of the rows (n,) uint64, columns: share of the bytes that is template, NULL where there are none; template lines)."""
    import numpy as np
    import pyarrow as pa

    hosts, found, whole, typed = known_lines(batch, templates)
    n = batch.num_rows
    template = np.where(whole, found.size, np.where(typed, found.size - found.slots, 0))
    size = np.bincount(found.row, found.size, minlength=n)
    share = (np.bincount(found.row, template, minlength=n) / np.maximum(size, 1)).astype(np.float32)
    skeletons = _skeletons(hosts, found.row, np.where(whole, found.exact, np.where(typed, found.typed, np.uint64(0))))
    counted = np.bincount(found.row, whole | typed, minlength=n).astype(np.int32)
    return skeletons, pa.RecordBatch.from_pydict({"share": pa.array(share, mask=size == 0), "lines": pa.array(counted)})


def known_lines(batch: pa.RecordBatch, templates: Source) -> tuple[np.ndarray, Lines, np.ndarray, np.ndarray]:
    """(host hashes of the rows, the lines of the batch, which are template as they stand, which others are with their slots open)."""
    import numpy as np

    from upslope.data import hashing
    from upslope.data.links.lines import lines

    path = templates.path()
    table = _table(str(path), templates.digest or digest_file(path))
    hosts, found = host_hashes(batch), lines(*hashing.column(batch["text"]))
    whole, typed = (_isin(keys, table) for keys in _keyed(hosts, found))
    return hosts, found, whole, np.asarray(typed & ~whole)


def templates(ctx: Context, view: Corpus, share: float = 0.3, pages: int = 3, name: str = "templates") -> Source:
    """The template lines of a view's hosts, in a file for `known_lines`: sorted hashes, (n,) uint64."""
    import numpy as np

    from upslope.data.links import graph

    files = [Shard(f.path, f.digest) for f in view.files()]
    folders = list(ctx.map(graph.SketchShard(link=LineKeys(), link_version=LineKeys.version), files))
    starts = np.cumsum([0, *(f.rows for f in view.files())])
    body = np.concatenate([np.empty((0, 2), np.uint64), *(b for b in (np.load(f / "body.npy") for f in folders) if b.size)])
    kept = np.flatnonzero(view.kept())
    counted = np.zeros(len(body), bool)
    counted[kept[np.unique(body[kept, 1], return_index=True)[1]]] = True
    host = np.unique(body[:, 0], return_inverse=True)[1]
    sizes = np.bincount(host, counted)
    found = [np.empty(0, np.uint64)]
    for keys, places in graph.ranges(folders, counted, starts[:-1]):
        first, end = graph.groups(keys)
        enough = end - first > np.maximum(pages, share * sizes[host[places[first]]])
        found.append(keys[first[enough]])
    file = ctx.work / f"{name}.npy"
    with atomic(file) as temporary, open(temporary, "wb") as f:
        np.save(f, np.concatenate(found))
    return Source(uri=str(file), digest=digest_file(file))


def template_lines(view: Corpus, share: float = 0.3, pages: int = 3, ctx: Context | None = None) -> dict[str, frozenset[str]]:
    """Host → the lines, as they stand, blanks at their ends left out, that are on more than max(pages, share · n) of its n living pages
    (copies of a text count once). ctx: to keep what is counted; without one it is counted in a temporary folder."""
    import tempfile

    found: dict[str, set[str]] = {}
    with tempfile.TemporaryDirectory() as folder:
        source = templates(ctx or Context.scratch(folder), view, share, pages)
        for batch in view.batches(("url", "source", "text")):
            _, lines, whole, _ = known_lines(batch, source)
            if whole.any():
                _collect(found, hosts_of(batch), batch["text"].to_pylist(), lines, whole)
    return {host: frozenset(lines) for host, lines in sorted(found.items())}


def _collect(found: dict[str, set[str]], hosts: list[str], texts: list[str], lines: Lines, whole: np.ndarray) -> None:
    for row, each in _by_row(lines.row, whole):
        stripped = [s for s in (line.strip() for line in texts[row].split("\n")) if s]
        if any(each):
            found.setdefault(hosts[row], set()).update(s for s, is_template in zip(stripped, each) if is_template)


def _by_row(row: np.ndarray, flags: np.ndarray) -> Iterator[tuple[int, list[bool]]]:
    import numpy as np

    starts = np.flatnonzero(np.concatenate([[True], row[1:] != row[:-1]]))
    for start, end in zip(starts.tolist(), [*starts[1:].tolist(), row.size]):
        yield int(row[start]), flags[start:end].tolist()


def _isin(values: np.ndarray, table: np.ndarray) -> np.ndarray:
    """Which values are in a sorted table."""
    import numpy as np

    if not table.size:
        return np.zeros(values.size, bool)
    return np.asarray(table[np.minimum(np.searchsorted(table, values), table.size - 1)] == values)


@lru_cache(maxsize=2)
def _table(path: str, digest: str) -> np.ndarray:
    import numpy as np

    return np.asarray(np.load(Path(path)))
