"""gopher: the document statistics that the Gopher quality rules look at, over prose only.

Source: Rae et al. 2021 (arXiv 2112.11446), appendix A.1.1; thresholds as in datatrove: words 50–100,000, mean word length 3–10,
symbol_ratio ≤ 0.1, bullet_lines ≤ 0.9, ellipsis_lines ≤ 0.3, alpha_words ≥ 0.8, stop_words ≥ 2.

Unlike datatrove: code, formulas and tables are left out; words stand between blanks, as in the paper (datatrove makes a word of each
punctuation mark, so that `alpha_words` drops a third of documentation pages); stop words are found whatever their case; the marks of
Markdown headings are no symbols; empty lines are no lines; `-`, `*` and `+` make a bullet only before a blank.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from upslope.data.protocol import Annotate

if TYPE_CHECKING:
    import pyarrow as pa


class Gopher(Annotate):
    """words: tokens between blanks with a letter or digit; mean_word_length in characters; symbol_ratio: the larger of `#` / tokens and
    ellipses / tokens; bullet_lines, ellipsis_lines: shares of lines; alpha_words: share of tokens with a letter; stop_words: how many
    of them occur; units: words, where each letter of an unspaced script (Han, kana, Thai, …) is one; characters: without blanks;
    unspaced: share of letters and digits in unspaced scripts.

    Fields that count by blanks (words, mean_word_length, symbol_ratio, alpha_words, stop_words) are NULL where unspaced > 0.3; ratios are
    NULL without tokens. stopwords: which ones, in small letters; those of the language where it is not English.
    """

    kind: ClassVar[str] = "gopher"
    version: ClassVar[int] = 2
    gives: ClassVar[Mapping[str, str]] = {
        "words": "int32",
        "mean_word_length": "float32",
        "symbol_ratio": "float32",
        "bullet_lines": "float32",
        "ellipsis_lines": "float32",
        "alpha_words": "float32",
        "stop_words": "int32",
        "units": "int32",
        "characters": "int32",
        "unspaced": "float32",
    }

    stopwords: tuple[str, ...] = Field(default=("the", "be", "to", "of", "and", "that", "have", "with"), min_length=1)

    def __call__(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Needs the columns text and spans."""
        import numpy as np

        from upslope.data import prose, reference

        stops = [word.encode() for word in sorted(set(self.stopwords))]
        hashes = np.array([prose.fnv(word) for word in stops], np.uint64)
        bullets = np.frombuffer(reference.BULLETS.encode(), np.uint8)
        return prose.frame(self.gives, prose.gopher(*prose.prose_of(batch), hashes, max(map(len, stops)), bullets, 0.3))
