"""repetition: how much of the prose repeats itself.

Source: Rae et al. 2021 (arXiv 2112.11446), table A1. Usual limits: line_dup, para_dup ≤ 0.3; line_dup_bytes, para_dup_bytes ≤ 0.2;
top_2 ≤ 0.20, top_3 ≤ 0.18, top_4 ≤ 0.16; dup_5 … dup_10 ≤ 0.15, 0.14, 0.13, 0.12, 0.11, 0.10.
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
    by the most frequent n-gram of tokens; dup_n: share of bytes in n-grams that occurred before. NULL without prose."""

    kind: ClassVar[str] = "repetition"
    gives: ClassVar[Mapping[str, str]] = {
        **dict.fromkeys(BLOCKS, "float32"),
        **{f"top_{n}": "float32" for n in TOP},
        **{f"dup_{n}": "float32" for n in DUP},
    }

    def __call__(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Needs the columns text and spans."""
        import numpy as np
        import pyarrow as pa

        from upslope.data import prose, shards

        columns: dict[str, list[float | None]] = {name: [] for name in self.gives}
        for text, spans in zip(batch["text"].to_pylist(), batch["spans"].to_pylist()):
            data = np.frombuffer(shards.prose(text.encode(), spans), np.uint8)
            hashes, starts, ends = prose.tokens(data)
            values: list[float | None] = [None] * len(self.gives)
            if hashes.size:
                values = []
                for paragraphs in (False, True):
                    blocks, repeated, size, repeated_size = prose.repeated_blocks(data, paragraphs)
                    values += [repeated / blocks, repeated_size / size]
                values += [prose.top_ngram(hashes, starts, ends, n) / data.size for n in TOP]
                values += [prose.repeated_ngrams(hashes, starts, ends, n) / data.size for n in DUP]
            for name, value in zip(self.gives, values):
                columns[name].append(value)
        return pa.RecordBatch.from_pydict({n: pa.array(columns[n], pa.float32()) for n in self.gives})
