"""Proof that a text holds nothing but pieces of another one: a certificate for each document, and a checker that trusts nothing else.

A certificate is the digest of the source and the byte ranges that were kept. `check` derives the text from them anew and compares it,
byte for byte; it shares no code with what made the certificate. `prove` does so for every document of a corpus.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from upslope.data.artifacts import Corpus

RANGES = re.compile(r"(?:(?:0|[1-9][0-9]{0,9})-[1-9][0-9]{0,9})(?:,(?:0|[1-9][0-9]{0,9})-[1-9][0-9]{0,9})*")


class Broken(ValueError):
    """A certificate that does not prove what it should; the message says what does not fit."""


class Certificate(NamedTuple):
    """digest: xxh3-128 of the bytes of the source, 32 hex digits. ranges: (start, end) in bytes of the source, ascending, apart."""

    digest: str
    ranges: tuple[tuple[int, int], ...]

    def text(self) -> str:
        """The ranges as text, `0-15,20-33`; "" for none."""
        return ",".join(f"{start}-{end}" for start, end in self.ranges)


class Proof(NamedTuple):
    """What `prove` found. documents: looked at, of which `whole` are unchanged, `cut` are shorter and `empty` have nothing left.

    uncertified: of the unchanged ones, those without a certificate. before, after: bytes of text. violation: the first document that
    does not hold, with what is wrong; "" if all do. at: its number.
    """

    documents: int = 0
    whole: int = 0
    cut: int = 0
    empty: int = 0
    uncertified: int = 0
    before: int = 0
    after: int = 0
    violation: str = ""
    at: int | None = None

    @property
    def holds(self) -> bool:
        """Whether every document passed: no text in the corpus was written by a model."""
        return not self.violation


def digest(source: bytes) -> str:
    """xxh3-128 in hex."""
    import xxhash

    return xxhash.xxh3_128_hexdigest(source)


def parse(digest: str, ranges: str) -> Certificate:
    """A certificate from its two columns; Broken where they have another form."""
    if not re.fullmatch("[0-9a-f]{32}", digest):
        raise Broken(f"digest {digest[:40]!r} is not 32 hex digits")
    if ranges and not RANGES.fullmatch(ranges):
        raise Broken(f"ranges {ranges[:40]!r} are not of the form 0-15,20-33")
    pairs = (part.split("-") for part in ranges.split(",")) if ranges else ()
    return Certificate(digest, tuple((int(start), int(end)) for start, end in pairs))


def check(source: bytes, text: bytes, certificate: Certificate) -> None:
    """Derives the text from the source anew. Broken where the digest, the ranges or the text do not fit."""
    import xxhash

    if xxhash.xxh3_128_hexdigest(source) != certificate.digest:
        raise Broken("the source has another digest")
    derived, last = bytearray(), -1
    for start, end in certificate.ranges:
        if not last < start < end <= len(source):
            raise Broken(f"range {start}-{end} is empty, out of order, not apart from the one before, or outside {len(source)} bytes")
        for edge in (start, end):
            if edge < len(source) and source[edge] & 0xC0 == 0x80:
                raise Broken(f"range {start}-{end} cuts a character in two")
        derived += source[start:end]
        last = end
    if derived != text:
        at = next((i for i, (a, b) in enumerate(zip(derived, text)) if a != b), min(len(derived), len(text)))
        raise Broken(f"the text is not what the ranges say: byte {at} differs ({len(text)} bytes, ranges give {len(derived)})")


def prove(before: Corpus, after: Corpus, column: str = "spans") -> Proof:
    """Checks every document of `after`, kept or not, against `before`. column: the columns of the rewrite, `COLUMN.digest` and `.ranges`.

    A document without a certificate must be unchanged. Stops at the first violation.
    """
    found = Proof()
    if [f.rows for f in before.files()] != [f.rows for f in after.files()]:
        return found._replace(violation="the corpora have other rows")
    for number in range(len(before.files())):
        old = before.shard(number, ("doc", "url", "text")).to_pylist()
        new = after.shard(number, ("text", f"{column}.digest", f"{column}.ranges")).to_pylist()
        for a, b in zip(old, new, strict=True):
            source, text = (a["text"] or "").encode(), (b["text"] or "").encode()
            try:
                if b[f"{column}.digest"] is not None:
                    check(source, text, parse(b[f"{column}.digest"], b[f"{column}.ranges"] or ""))
                elif source != text:
                    raise Broken("it changed and has no certificate")
            except Broken as e:
                return found._replace(violation=f"{a['url']}: {e}", at=a["doc"])
            found = found._replace(
                documents=found.documents + 1,
                whole=found.whole + (source == text),
                cut=found.cut + (source != text != b""),
                empty=found.empty + (source != text == b""),
                uncertified=found.uncertified + (b[f"{column}.digest"] is None),
                before=found.before + len(source),
                after=found.after + len(text),
            )
    return found
