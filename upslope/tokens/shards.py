"""Token shards: per source one flat array of ids, whole documents one after the other, each closed by end-of-text.

No packing and no mixture: those belong to the stream, so another sequence length or another mixture reads the same files.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, Any, NamedTuple
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray

from upslope.config import UsageError
from upslope.machine.files import read_json, write_json
from upslope.machine.stage import Artifact
from upslope.tokens.tokenizer import Tokenizer

HELDOUT = "@heldout"
"""Ending of the names of sources that no training stage may read."""

ROW = np.dtype([("end", "<i8"), ("doc", "<u8")])
"""One row of an `.idx` file: where the document ends in the `.bin` file (in tokens), and its number in the corpus."""


class Counts(NamedTuple):
    """Sizes of a source: tokens with end-of-text, documents, UTF-8 bytes of their texts."""

    tokens: int = 0
    docs: int = 0
    bytes: int = 0


@dataclass(frozen=True)
class TokenShards(Artifact):
    """`shards.json`, and per source a `.bin` (u16 or u32 ids) and an `.idx` (rows of `ROW`)."""

    @cached_property
    def _body(self) -> dict[str, Any]:
        file = self.path / "shards.json"
        if not file.is_file():
            raise UsageError(f"{self.path.name!r} holds no token shards: no shards.json\nway out: make them with a 'tokenize' stage")
        body: dict[str, Any] = read_json(file)
        return body

    @classmethod
    def write(cls, folder: Path, tokenizer: Tokenizer, texts: Mapping[str, Iterable[str]]) -> TokenShards:
        """Tokenizes texts by source, in memory-sized steps; documents are numbered from 0 in each source."""
        writer = ShardWriter(folder, tokenizer)
        for source, items in texts.items():
            listed = list(items)
            writer.add(source, range(len(listed)), listed)
        return writer.close()

    def sources(self) -> tuple[str, ...]:
        """Names of the sources, sorted, held-out ones too (they end in `@heldout`)."""
        return tuple(sorted(self._body["sources"]))

    def training(self) -> tuple[str, ...]:
        """Names of the sources that training may read, sorted."""
        return tuple(s for s in self.sources() if not s.endswith(HELDOUT))

    def _entry(self, source: str) -> dict[str, Any]:
        entries: dict[str, dict[str, Any]] = self._body["sources"]
        if source not in entries:
            raise UsageError(unknown_source(source, self.sources()))
        return entries[source]

    def counts(self, source: str) -> Counts:
        """Tokens, documents and bytes of a source."""
        e = self._entry(source)
        return Counts(e["tokens"], e["docs"], e["bytes"])

    def tokens(self, source: str) -> NDArray[np.unsignedinteger[Any]]:
        """All ids of a source, (tokens,) u16 or u32, memory-mapped."""
        e = self._entry(source)
        dtype = np.dtype(self._body["dtype"])
        if e["tokens"] == 0:
            return np.zeros(0, dtype)
        return np.memmap(self.path / f"{e['file']}.bin", dtype=dtype, mode="r", shape=(e["tokens"],))

    def _rows(self, source: str) -> NDArray[np.void]:
        return np.fromfile(self.path / f"{self._entry(source)['file']}.idx", dtype=ROW)

    def offsets(self, source: str) -> NDArray[np.int64]:
        """Document i holds tokens offsets[i] to offsets[i + 1]; (docs + 1,) i64."""
        return np.concatenate([np.zeros(1, np.int64), self._rows(source)["end"].astype(np.int64)])

    def docs(self, source: str) -> NDArray[np.uint64]:
        """Numbers of the documents in the corpus that they came from, (docs,) u64."""
        return self._rows(source)["doc"].astype(np.uint64)

    def bytes(self, source: str) -> int:
        """UTF-8 bytes of the texts of a source."""
        return self.counts(source).bytes

    @property
    def contamination(self) -> dict[str, Any]:
        """Corpus → column → benchmark → what was found of it when the corpus was curated; {} where nothing was looked for."""
        return dict(self._body.get("contamination", {}))

    @property
    def vocab_size(self) -> int:
        """Vocabulary of the tokenizer that made these ids."""
        return int(self._body["vocab_size"])

    @property
    def tokenizer_digest(self) -> str:
        """`Tokenizer.digest` of the tokenizer that made these ids."""
        return str(self._body["tokenizer"])


def unknown_source(source: str, known: Sequence[str]) -> str:
    """The message for a source that is not there."""
    near = difflib.get_close_matches(source, known, n=2, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"they have: {', '.join(known) or 'none'}"
    return f"no source {source!r} in these shards\n{hint}"


class ShardWriter:
    """Appends documents to shards. `state` and `resume` let a killed run go on; the bytes do not depend on where it stopped."""

    def __init__(self, folder: Path, tokenizer: Tokenizer, resume: Mapping[str, Sequence[int]] | None = None) -> None:
        self.folder, self.tokenizer = folder, tokenizer
        self.dtype = np.dtype("<u2" if tokenizer.vocab_size <= 1 << 16 else "<u4")
        self.counts = {source: Counts(*values) for source, values in (resume or {}).items()}
        self._files: dict[str, tuple[IO[bytes], IO[bytes]]] = {}
        folder.mkdir(parents=True, exist_ok=True)

    def add(self, source: str, docs: Iterable[int], texts: Sequence[str]) -> None:
        """Tokenizes and appends documents of a source; docs: their numbers in the corpus."""
        bin_file, idx_file = self._open(source)
        count = self.counts[source]
        ids = self.tokenizer.encode_batch(texts)
        ends = count.tokens + np.cumsum([len(i) + 1 for i in ids], dtype=np.int64)
        flat = np.concatenate([np.asarray([*i, self.tokenizer.eos], self.dtype) for i in ids]) if ids else np.zeros(0, self.dtype)
        rows = np.zeros(len(ids), ROW)
        rows["end"], rows["doc"] = ends, np.fromiter(docs, np.uint64, len(ids))
        bin_file.write(flat.tobytes())
        idx_file.write(rows.tobytes())
        size = sum(len(t.encode("utf-8", "surrogatepass")) for t in texts)
        self.counts[source] = Counts(count.tokens + len(flat), count.docs + len(ids), count.bytes + size)

    def state(self) -> dict[str, list[int]]:
        """Flushes, and returns what `resume` needs."""
        for pair in self._files.values():
            for file in pair:
                file.flush()
                os.fsync(file.fileno())
        return {source: list(c) for source, c in self.counts.items()}

    def close(self, contamination: Mapping[str, Any] | None = None) -> TokenShards:
        """Writes `shards.json`, with what is known of evaluation items in the texts, and returns the artifact."""
        self.state()
        for pair in self._files.values():
            for file in pair:
                file.close()
        self._files.clear()
        write_json(
            self.folder / "shards.json",
            {
                "sources": {s: {"file": _stem(s), **c._asdict()} for s, c in self.counts.items()},
                "dtype": self.dtype.str,
                "vocab_size": self.tokenizer.vocab_size,
                "tokenizer": self.tokenizer.digest,
                "eos": self.tokenizer.eos,
                **({"contamination": dict(contamination)} if contamination else {}),
            },
        )
        return TokenShards.load(self.folder)

    def _open(self, source: str) -> tuple[IO[bytes], IO[bytes]]:
        if source not in self._files:
            count = self.counts.setdefault(source, Counts())
            stem = self.folder / _stem(source)
            pair = []
            for suffix, size in ((".bin", count.tokens * self.dtype.itemsize), (".idx", count.docs * ROW.itemsize)):
                file = open(f"{stem}{suffix}", "ab")  # noqa: SIM115  (closed by close)
                file.truncate(size)  # drops what a killed attempt wrote after its last saved state
                file.seek(size)
                pair.append(file)
            self._files[source] = (pair[0], pair[1])
        return self._files[source]


def _stem(source: str) -> str:
    return quote(source, safe="@ ")
