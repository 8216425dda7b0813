"""HTTP bodies as they were sent (chunked; gzip, deflate, brotli, zstd) → the page, never more of it than is wanted."""

from __future__ import annotations

import io
import zlib
from typing import NamedTuple

from upslope.data.readers.streams import GZIP, Damaged, decompressor

LAYERS = 3
IDENTITY = frozenset({"", "identity", "none", "chunked", "aws-chunked", "utf-8"})


class Body(NamedTuple):
    """A decoded body. more: it is longer than wanted. problem: why it cannot be decoded, or ""."""

    data: bytes
    more: bool = False
    problem: str = ""


def decode(data: bytes, transfer: str, content: str, limit: int, whole: bool = True) -> Body:
    """Undoes Transfer-Encoding and Content-Encoding up to `limit` bytes.

    A crawler often decodes a body and leaves its headers: a body that does not look as declared is taken as it is. One that
    still looks like gzip afterwards was packed twice (or not declared), and is unpacked up to three times. whole: `data` is all
    of what was sent, so that an early end is damage.
    """
    if "chunked" in transfer.lower():
        data, ended = unchunk(data)
        if not ended and whole:
            return Body(data, problem="its chunks end early")
    for name in reversed([part.strip() for part in content.lower().split(",")]):
        if name in IDENTITY or (name in ("gzip", "x-gzip") and not data.startswith(GZIP)):
            continue
        if name not in ("gzip", "x-gzip", "deflate", "br", "zstd"):
            return Body(data, problem=f"Content-Encoding {name[:20]!r} is not known")
        body = _undo(data, name, limit, whole)
        if body.problem and name != "zstd" and _readable(data):
            continue
        if body.problem:
            return body
        data, whole = body.data, whole and not body.more
    for _ in range(LAYERS):
        if not data.startswith(GZIP + b"\x08"):
            return Body(data[:limit], len(data) > limit or not whole)
        body = _undo(data, "gzip", limit, whole)
        if body.problem:
            return body
        data, whole = body.data, whole and not body.more
    return Body(data[:limit], problem=f"packed more than {LAYERS} times")


def _readable(data: bytes) -> bool:
    """Whether bytes look like text rather than like something packed."""
    head = data[:512].lstrip()
    return head[:1] == b"<" or (head[:1].isalnum() and not any(b < 32 and b not in b"\t\n\f\r\x1b" for b in head))


def _undo(data: bytes, name: str, limit: int, whole: bool) -> Body:
    if name in ("br", "zstd"):
        read = decompressor("brotli" if name == "br" else "zstd", io.BytesIO(data))
        out = bytearray()
        try:
            while len(out) <= limit and (piece := read(min(1 << 20, limit + 1 - len(out)))):
                out += piece
        except Damaged as e:
            if not (e.ended and not whole):
                return Body(b"", problem=f"its {name} body is damaged: {e}")
        return Body(bytes(out[:limit]), len(out) > limit)
    problem = ""
    for bits in (31,) if name in ("gzip", "x-gzip") else (15, -15):
        out, rest = bytearray(), data
        try:
            while rest and len(out) <= limit:
                z = zlib.decompressobj(bits)
                out += z.decompress(rest, limit + 1 - len(out))
                if not z.eof:
                    problem = "" if not whole or len(out) > limit else f"its {name} body ends early"
                    break
                problem, rest = "", z.unused_data
                if bits != 31 or not rest.startswith(GZIP):  # what follows the last member is padding
                    break
            return Body(bytes(out[:limit]), len(out) > limit, problem)
        except zlib.error as e:
            problem = f"its {name} body is damaged: {str(e).partition(': ')[2] or e}"
    return Body(b"", problem=problem)


def unchunk(data: bytes) -> tuple[bytes, bool]:
    """(the chunks joined, whether the last one was there); data that is not chunked is given back as it is."""
    out: list[bytes] = []
    at = 0
    while True:
        end = data.find(b"\n", at, at + 4096)
        size = data[at : max(end, at)].split(b";")[0].strip()
        try:
            n = int(size, 16) if size.isalnum() else -1
        except ValueError:
            n = -1
        if end < 0 or n < 0:
            return (b"".join(out), False) if out else (data, True)
        if n == 0:
            return b"".join(out), True
        out.append(data[end + 1 : end + 1 + n])
        at = end + 1 + n
        if at >= len(data):
            return b"".join(out), False
        at += 2 if data[at : at + 2] == b"\r\n" else 1
