"""repetition: how much of the prose repeats itself.

Source: Rae et al. 2021 (arXiv 2112.11446), table A1. Usual limits: line_dup, para_dup ≤ 0.3; line_dup_bytes, para_dup_bytes ≤ 0.2;
top_2 ≤ 0.20, top_3 ≤ 0.18, top_4 ≤ 0.16; dup_5 … dup_10 ≤ 0.15, 0.14, 0.13, 0.12, 0.11, 0.10.

Unlike datatrove: code, formulas and tables are left out; bytes, not characters; tokens stand between blanks, and letters of unspaced
scripts one by one; lines and paragraphs are compared without the blanks around them; the bytes of repeated ones are a share of those in
all of them; an n-gram that occurs once is no top n-gram, and among equally frequent ones the longest counts, not the first.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from upslope.data.protocol import Annotate

if TYPE_CHECKING:
    import pyarrow as pa

BLOCKS = ("line_dup", "line_dup_bytes", "para_dup", "para_dup_bytes")
TOP, DUP = (2, 3, 4), (5, 6, 7, 8, 9, 10)


class Repetition(Annotate):
    """line_dup, para_dup: share of lines and paragraphs that occurred before; *_bytes: the same by bytes; top_n: share of bytes covered
    by the most frequent n-gram of tokens (one byte for each gap); dup_n: share of bytes in n-grams that occurred before, left to right,
    each byte once. NULL without prose."""

    kind: ClassVar[str] = "repetition"
    version: ClassVar[int] = 2
    gives: ClassVar[Mapping[str, str]] = {
        **dict.fromkeys(BLOCKS, "float32"),
        **{f"top_{n}": "float32" for n in TOP},
        **{f"dup_{n}": "float32" for n in DUP},
    }

    def __call__(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Needs the columns text and spans."""
        from upslope.data import prose

        return prose.frame(self.gives, prose.repetition(*prose.prose_of(batch)))
