"""Streams over files that may be packed, cut short or hostile: nothing expands beyond what is asked for."""

from __future__ import annotations

import io
import os
import zlib
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

CHUNK = 1 << 16
GZIP, ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
BOMB_BYTES, BOMB_RATIO = 64 << 20, 100
"""A gzip member (a whole file of zstd) that gave more than 64 MiB, and more than 100 bytes for each that it took, is a bomb: it is left."""


class Damaged(Exception):
    """Bytes that cannot be unpacked.

    at: offset in the file of what is damaged. ended: there are too few of them. bomb: far too many come out. record: what was being read.
    """

    def __init__(self, why: str, at: int, ended: bool = False, bomb: bool = False) -> None:
        super().__init__(why)
        self.at, self.ended, self.bomb, self.record = at, ended, bomb, ""


class Slice:
    """The bytes [start, stop) of a file, as far as it has them. `at` counts from the start of the file."""

    def __init__(self, file: Path, start: int = 0, stop: int | None = None) -> None:
        self.raw: BinaryIO = open(file, "rb")  # noqa: SIM115
        self.size = self.raw.seek(0, io.SEEK_END)
        self.stop = self.size if stop is None else min(stop, self.size)
        self.seek(start)

    def __enter__(self) -> Slice:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.raw.close()

    def seek(self, at: int) -> None:
        """Goes to an offset of the file."""
        self.at = min(at, self.stop)
        self.raw.seek(self.at)

    def read(self, size: int = CHUNK) -> bytes:
        """At most `size` bytes; b"" at the end of the slice."""
        data = self.raw.read(max(0, min(size, self.stop - self.at)))
        self.at += len(data)
        return data

    def look(self, at: int, size: int) -> bytes:
        """At most `size` bytes of the slice from offset `at`, without going there."""
        return os.pread(self.raw.fileno(), max(0, min(size, self.stop - at)), at) if at < self.stop else b""


class Gzip:
    """The members of a gzip file, one after another, inflated piece by piece."""

    def __init__(self, source: Slice) -> None:
        self.source, self.pending, self.start = source, b"", source.at
        self._z = zlib.decompressobj(31)
        self.taken = self.given = 0

    @property
    def at(self) -> int:
        """Offset of the first byte that was not taken yet."""
        return self.source.at - len(self.pending)

    def begin(self) -> bool:
        """Goes to the next member, over zero padding; False at the end. Raises Damaged if there is something else."""
        while True:
            self.pending = (self.pending or self.source.read()).lstrip(b"\0")
            if self.pending or self.source.at >= self.source.stop:
                break
        while 0 < len(self.pending) < 2 and (more := self.source.read()):
            self.pending += more
        self.start = self.at
        if not self.pending:
            return False
        if not self.pending.startswith(GZIP):
            raise Damaged("not gzip", self.start, ended=len(self.pending) < 2)
        self._z, self.taken, self.given = zlib.decompressobj(31), 0, 0
        return True

    def read(self, size: int = CHUNK) -> bytes:
        """At most `size` inflated bytes of this member; b"" at its end. Raises Damaged, also for a bomb."""
        while not self._z.eof:
            data = self.pending or self.source.read()
            if not data:
                raise Damaged("it ends within a gzip member", self.start, ended=True)
            before = len(data)
            try:
                out = self._z.decompress(data, size)
            except zlib.error as e:
                raise Damaged(str(e).removeprefix("Error ").partition(": ")[2] or "not deflate", self.start) from None
            self.pending = self._z.unused_data if self._z.eof else self._z.unconsumed_tail
            self.taken, self.given = self.taken + before - len(self.pending), self.given + len(out)
            if self.given > BOMB_BYTES and self.given > BOMB_RATIO * self.taken:
                raise Damaged(f"decompression bomb: {self.taken:,} bytes gave {self.given:,} and more", self.start, bomb=True)
            if out:
                return out
        return b""

    def resync(self, after: int, good: Callable[[bytes], bool]) -> bool:
        """Goes to the first member that starts at or after `after` and whose first bytes are `good`; False (at the end) if none does."""
        found = find_member(self.source, after, good)
        self.source.seek(self.source.stop if found is None else found)
        self.pending = b""
        return found is not None


def find_member(source: Slice, after: int, good: Callable[[bytes], bool]) -> int | None:
    """Offset of the first gzip member at or after `after` whose inflated first bytes are `good`; None if there is none in the slice."""
    at, kept = after, b""
    source.seek(after)
    while data := source.read(CHUNK):
        block, base = kept + data, at - len(kept)
        at += len(data)
        found = block.find(GZIP + b"\x08")
        while found >= 0:
            if len(block) - found < 4096 and at < source.stop:  # near the end of the block: look at it again with more behind it
                break
            z = zlib.decompressobj(31)
            try:
                if good(z.decompress(block[found : found + 4096], 64)):
                    return base + found
            except zlib.error:
                pass
            found = block.find(GZIP + b"\x08", found + 1)
        kept = block[found:] if found >= 0 else block[-2:]
    return None


def header_end(data: bytes, limit: int) -> int:
    """Where the first blank line within `limit` bytes ends; 0 if there is none."""
    long = data.find(b"\r\n\r\n", 0, limit)
    short = data.find(b"\n\n", 0, limit if long < 0 else long)
    return short + 2 if short >= 0 else long + 4 if long >= 0 else 0


class Reader:
    """Exact counts and header blocks from a stream that gives pieces. `at`: how many bytes were taken; inside: within a record.

    Damage is raised only where what comes before it does not suffice.
    """

    def __init__(self, more: Callable[[int], bytes]) -> None:
        self._more, self._held, self.at = more, b"", 0
        self._damage: Damaged | None = None
        self.inside = False

    def _fill(self, size: int) -> bool:
        """Holds at least `size` bytes, if the stream has them."""
        pieces, have = [self._held], len(self._held)
        try:
            while have < size and not self._damage and (data := self._more(max(CHUNK, min(size - have, 1 << 20)))):
                pieces.append(data)
                have += len(data)
        except Damaged as e:
            self._damage = e
        if len(pieces) > 1:
            self._held = b"".join(pieces)
        return have >= size

    def _need(self, size: int) -> None:
        if not self._fill(size) and self._damage:
            raise self._damage

    def peek(self, size: int) -> bytes:
        """The next bytes, at most `size`, left in place."""
        self._need(size)
        return self._held[:size]

    def take(self, size: int) -> bytes:
        """The next `size` bytes, fewer at the end."""
        self._need(size)
        data, self._held = self._held[:size], self._held[size:]
        self.at += len(data)
        return data

    def skip(self, size: int) -> int:
        """Passes over `size` bytes without holding them; how many there were."""
        left = size
        while left and (data := self.take(min(left, CHUNK))):
            left -= len(data)
        return size - left

    def block(self, limit: int) -> bytes | None:
        """Everything through the next blank line (headers); None, and nothing taken, if there is none within `limit` bytes."""
        want = 1024
        while True:
            whole = self._fill(want)
            if end := header_end(self._held, limit):
                return self.take(end)
            if not whole or want >= limit:
                if self._damage:
                    raise self._damage
                return None
            want = min(limit, want * 4)


def unpacked(source: Slice) -> tuple[str, Callable[[int], bytes]]:
    """("", "gzip" or "zstd", read) of a file from its start: `read(n)` gives at most n unpacked bytes, b"" at the end.

    It raises Damaged for what cannot be unpacked.
    """
    head = source.read(4)
    source.seek(source.at - len(head))
    if head.startswith(GZIP):
        gz = Gzip(source)
        started = False

        def inflate(size: int) -> bytes:
            nonlocal started
            if not started:
                started = gz.begin()
            while started:
                if data := gz.read(size):
                    return data
                started = gz.begin()
            return b""

        return "gzip", inflate
    if head == ZSTD:
        return "zstd", decompressor("zstd", source.raw)
    return "", source.read


def decompressor(codec: str, source: BinaryIO) -> Callable[[int], bytes]:
    """Reads from a stream packed with zstd or brotli; raises Damaged."""
    import pyarrow as pa

    stream = pa.CompressedInputStream(pa.PythonFile(source, "r"), codec)
    given = 0

    def read(size: int) -> bytes:
        nonlocal given
        if given > BOMB_BYTES and given > BOMB_RATIO * source.tell():
            raise Damaged(f"decompression bomb: {source.tell():,} bytes gave {given:,} and more", source.tell(), bomb=True)
        try:
            data = bytes(stream.read(size))
            given += len(data)
            return data
        except (OSError, pa.ArrowException) as e:
            why = "it ends within a frame" if "runcated" in str(e) else f"not {codec}"
            raise Damaged(why, source.tell(), ended="runcated" in str(e)) from None

    return read


class Raw(io.RawIOBase):
    """A raw stream from a `read` function, for `io.BufferedReader`."""

    def __init__(self, read: Callable[[int], bytes]) -> None:
        self._read = read

    def readable(self) -> bool:
        """Yes."""
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        """Fills the front of the buffer; 0 at the end."""
        data = self._read(len(buffer))
        buffer[: len(data)] = data
        return len(data)
