"""gopher: the document statistics that the Gopher quality rules look at, over prose only.

Source: Rae et al. 2021 (arXiv 2112.11446), appendix A.1.1; thresholds as in datatrove: words 50–100,000, mean word length 3–10,
symbol_ratio ≤ 0.1, bullet_lines ≤ 0.9, ellipsis_lines ≤ 0.3, alpha_words ≥ 0.8, stop_words ≥ 2.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from upslope.data.protocol import Annotate

if TYPE_CHECKING:
    import pyarrow as pa

STOP_WORDS = ("the", "be", "to", "of", "and", "that", "have", "with")
UNSPACED = 0.3


class Gopher(Annotate):
    """words: tokens between blanks with a letter or digit; mean_word_length in characters; symbol_ratio: (`#` and ellipses) / tokens;
    bullet_lines, ellipsis_lines: shares of lines; alpha_words: share of tokens with a letter; stop_words: how many of eight occur.

    All NULL where 30 % of the prose is in an unspaced script (Chinese, Japanese): blanks do not count its words. Ratios are NULL
    without tokens.
    """

    kind: ClassVar[str] = "gopher"
    gives: ClassVar[Mapping[str, str]] = {
        "words": "int32",
        "mean_word_length": "float32",
        "symbol_ratio": "float32",
        "bullet_lines": "float32",
        "ellipsis_lines": "float32",
        "alpha_words": "float32",
        "stop_words": "int32",
    }

    def __call__(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Needs the columns text and spans."""
        import numpy as np
        import pyarrow as pa

        from upslope.data import prose, shards

        stops = np.array([_fnv(w) for w in STOP_WORDS], np.uint64)
        columns: dict[str, list[float | int | None]] = {name: [] for name in self.gives}
        for text, spans in zip(batch["text"].to_pylist(), batch["spans"].to_pylist()):
            data = np.frombuffer(shards.prose(text.encode(), spans), np.uint8)
            tokens, words, chars, alpha, symbols, lines, bullets, ellipses, stop, unspaced = prose.gopher_counts(data, stops).tolist()
            known = unspaced <= UNSPACED * data.size
            values = (
                int(words),
                chars / words if words else None,
                symbols / tokens if tokens else None,
                bullets / lines if lines else None,
                ellipses / lines if lines else None,
                alpha / tokens if tokens else None,
                int(stop),
            )
            for name, value in zip(self.gives, values):
                columns[name].append(value if known else None)
        return pa.RecordBatch.from_pydict({n: pa.array(columns[n], pa.type_for_alias(t)) for n, t in self.gives.items()})


def _fnv(word: str) -> int:
    h = 0xCBF29CE484222325
    for c in word.encode():
        h = (h ^ c) * 0x100000001B3 % (1 << 64)
    return h
