"""Ingest as map work: sources → parts (a range of a big file, or up to 256 small ones) → page shards and a reject ledger a part."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple
from urllib.parse import quote, unquote_to_bytes

from upslope.config import Config, Source
from upslope.data.protocol import Reject
from upslope.data.readers import ReadFile, lost, named
from upslope.data.readers.fields import clean
from upslope.data.readers.parts import Part, cut
from upslope.data.readers.warc import Unfinished
from upslope.machine.context import Context, Shard
from upslope.machine.files import read_json, write_json

SHARD_BYTES = 64 << 20
GROUP = 256
DOCS = frozenset(
    {"README.md", "README", "LICENSE", "LICENSE.md", "LICENSE.txt", ".gitattributes", "dataset_infos.json", "dataset_info.json"}
)
"""Files that describe the data beside them."""


class IngestShard(Config):
    """Reads the files of a part into page shards of at most `rows` pages (or 64 MiB)."""

    version: ClassVar[int] = 2

    read: ReadFile
    rows: int = 256

    def __call__(self, shard: Path, out: Path) -> None:
        """shard: a part as `ingest` describes it; out: 00000.parquet …, rejects.parquet, part.json {records, upto}.

        upto: 0, or the offset up to which bytes are needed because the last record runs past the part, which is then of no use.
        """
        from upslope.data import shards

        pages: list[Any] = []
        rejects: list[dict[str, str]] = []
        size = number = records = upto = 0

        def flush() -> None:
            nonlocal size, number
            if pages:
                shards.write(out / f"{number:05d}.parquet", shards.rows_to_table(pages, shards.PAGE))
                number, size = number + 1, 0
                pages.clear()

        for name, path, start, stop, first in read_json(shard)["files"]:
            for row in self.read.part(Path(os.fsdecode(unquote_to_bytes(path))), name, start, stop, first):
                if isinstance(row, Unfinished):
                    upto = row.upto
                elif isinstance(row, Reject):
                    rejects.append({"file": name, "record": clean(row.record)[0], "why": clean(row.why)[0]})
                    records += lost(row.why)
                else:
                    records += 1
                    pages.append(row)
                    size += len(row["html"])  # type: ignore[arg-type]
                    if len(pages) >= self.rows or size >= SHARD_BYTES:
                        flush()
        flush()
        shards.write(out / "rejects.parquet", shards.rows_to_table(rejects, shards.REJECT))
        write_json(out / "part.json", {"records": records, "upto": upto})


class Plan(NamedTuple):
    """What is to be read. groups: parts that are one piece of work. whole: big files that are one part, and why. skipped: files that
    say something about data and are none, and links to folders."""

    groups: list[list[Part]]
    whole: dict[str, str]
    skipped: list[str]


def files_of(root: Path) -> tuple[list[tuple[str, Path]], list[str]]:
    """((name, file) below a source, in the order of their relative paths; what is skipped).

    A folder saved by Hugging Face `datasets`, a repository of its hub (a README beside .parquet, .arrow or .jsonl files), and a Dolma
    folder (`documents/`) hold descriptions and attributes besides documents: only the documents are read. Links to folders are not
    followed: they may lead in a circle.
    """
    if not root.is_dir():
        return [(clean(root.name)[0], root)], []
    found: list[tuple[str, Path]] = []
    skipped: list[str] = []
    for folder, folders, names in os.walk(root, followlinks=False):
        for name in folders:
            if os.path.islink(os.path.join(folder, name)):
                skipped.append(f"{(Path(folder) / name).relative_to(root).as_posix()} (a link to a folder)")
        found += [((Path(folder) / n).relative_to(root).as_posix(), Path(folder) / n) for n in names if not n.startswith(".tmp-")]
    found.sort()
    data = layout([name for name, _ in found])[1]
    skipped += [n for n, _ in found if n not in data]
    return [(clean(n)[0], f) for n, f in found if n in data], sorted(clean(s)[0] for s in skipped)


def layout(names: Sequence[str]) -> tuple[str, set[str]]:
    """(what the folder is, "" for any; which of its files hold data), by its files' names."""
    if any(n in ("state.json", "dataset_dict.json") for n in names) and any(n.endswith(".arrow") for n in names):
        return "folder saved by datasets", {n for n in names if n.endswith(".arrow") and not Path(n).name.startswith("cache-")}
    if any(n.startswith("attributes/") for n in names) and any(n.startswith("documents/") for n in names):
        return "Dolma folder", {n for n in names if n.startswith("documents/")}
    data = {n for n in names if named(n) in ("parquet", "arrow", "jsonl", "warc")}
    if data and any(Path(n).name in DOCS for n in names):
        return "data set repository", {n for n in names if Path(n).name not in DOCS}
    return "", set(names)


def plan(sources: Sequence[Source], part_bytes: int) -> Plan:
    """Divides sources into parts; the same files and part size give the same parts, whoever reads them."""
    groups: list[list[Part]] = []
    small: list[Part] = []
    whole: dict[str, str] = {}
    skipped: list[str] = []

    def close() -> None:
        if small:
            groups.append(list(small))
            small.clear()

    for source in sources:
        files, left = files_of(source.path())
        skipped += left
        for name, path in files:
            pieces, why = cut(path, name, part_bytes)
            if why:
                whole[name] = why
            page = len(pieces) == 1 and named(name) in ("html", "text")
            if not page or len(small) >= GROUP or sum(p.high for p in small) + pieces[0].high > part_bytes:
                close()
            if page:
                small += pieces
            else:
                groups += [[piece] for piece in pieces]
        close()
    return Plan(groups, whole, skipped)


def ingest(ctx: Context, step: IngestShard, groups: list[list[Part]]) -> Iterator[Path]:
    """The result folder of each part, in order.

    Parts of a file are joined until each ends where a record does: a start that only looked like one (an archive within an archive)
    is then in the middle of a part. So the pages are those of the files read whole, for any part size.
    """
    folder = ctx.work / "parts"
    known: dict[Part, str] = {}
    while True:
        shards = []
        for i, group in enumerate(groups):
            described = folder / f"{i:05d}.json"
            rows = [[p.name, quote(os.fsencode(p.path.absolute())), p.start, p.stop, p.first] for p in group]
            write_json(described, {"files": rows})
            digests = [known.get(p) or known.setdefault(p, p.digest()) for p in group]
            shards.append(Shard(described, digests[0] if len(digests) == 1 else _together(digests)))
        done = list(ctx.map(step, shards))
        needs = [int(read_json(f / "part.json")["upto"]) for f in done]
        if not any(needs):
            yield from done
            return
        groups = join(groups, needs)


def join(groups: list[list[Part]], needs: Sequence[int]) -> list[list[Part]]:
    """Joins each part that needs bytes up to an offset with those of the same file that follow it."""
    out: list[list[Part]] = []
    reach: tuple[Path, int] | None = None
    for group, upto in zip(groups, needs):
        part = group[0]
        if reach and part.path == reach[0] and part.start < reach[1] and len(group) == 1 and part.start > 0:
            out[-1] = [out[-1][0].join(part)]
            continue
        out.append(group)
        reach = (part.path, upto) if upto else None
    return out


def _together(digests: Sequence[str]) -> str:
    return hashlib.blake2b("\n".join(digests).encode(), digest_size=16).hexdigest()
