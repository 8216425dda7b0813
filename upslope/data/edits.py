"""Edits of a text that keep its spans true: ranges of bytes replaced by other bytes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import pyarrow as pa

Spans = Sequence[Mapping[str, int]] | None


class Edit(NamedTuple):
    """Bytes start to end become `new`."""

    start: int
    end: int
    new: bytes


def replace(text: bytes, spans: Spans, edits: Sequence[Edit]) -> tuple[bytes, list[dict[str, int]] | None]:
    """The text after edits (in order, not overlapping) and its spans: each covers what is left of it, and is dropped where nothing is.

    What is put in place of a range across a boundary belongs to the span that held the start of it.
    """
    parts, at = [], 0
    for edit in edits:
        parts += [text[at : edit.start], edit.new]
        at = edit.end
    new = b"".join([*parts, text[at:]])
    if spans is None:
        return new, None
    bounds = sorted({s[side] for s in spans for side in ("start", "end")})
    moved, shift, i = {}, 0, 0
    for bound in bounds:
        while i < len(edits) and edits[i].end <= bound:
            shift += len(edits[i].new) - (edits[i].end - edits[i].start)
            i += 1
        inside = i < len(edits) and edits[i].start < bound
        moved[bound] = edits[i].start + len(edits[i].new) + shift if inside else bound + shift
    out = [{"start": moved[s["start"]], "end": moved[s["end"]], "kind": s["kind"]} for s in spans]
    return new, [s for s in out if s["end"] > s["start"]]


def rewrite(batch: pa.RecordBatch, edits: Callable[[int, bytes, Spans], Sequence[Edit]]) -> tuple[pa.Array, pa.Array]:
    """(texts, spans) of a batch after the edits of each row, given (row, text, spans). A NULL text becomes ""."""
    import pyarrow as pa

    from upslope.data import shards

    texts, spans = [text or "" for text in batch["text"].to_pylist()], batch["spans"].to_pylist()
    for row, (text, old) in enumerate(zip(texts, spans)):
        raw = text.encode()
        found = edits(row, raw, old)
        if found:
            new, spans[row] = replace(raw, old, found)
            texts[row] = new.decode()
    return pa.array(texts, pa.string()), pa.array(spans, pa.list_(shards.SPAN))
