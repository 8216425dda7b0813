"""c4: which lines of the prose the C4 rules would keep, and what they would drop the page for.

Source: Raffel et al. 2020 (JMLR 21/140), section 2.2, and its code; FineWeb keeps all but the rule on line ends. Usual limits:
sentences ≥ 5, not lorem_ipsum, not brace.

Unlike datatrove: code, formulas and tables are left out, so that a page with code is not dropped for its braces; `lorem ipsum` and `{`
count in any line, not only in those kept so far; typographic quotation marks and full stops of other scripts end a line too; a blank
before a citation mark goes with it; sentences are cut by rule (`reference.sentences`), not by Punkt; a letter of an unspaced script is
a word. Lines are only counted here; `rewriters/lines.py` takes them out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from upslope.data.protocol import Annotate

if TYPE_CHECKING:
    import pyarrow as pa


class C4(Annotate):
    """lines; kept_lines, kept_bytes: the share that meets all line rules; sentences: in lines kept; terminal: share of lines that end in a
    sentence end or quotation mark, not in an ellipsis; short_lines: share with fewer than `least` words; javascript, policy: lines that
    mention JavaScript, or terms of use, privacy or cookies; longest_word in characters; lorem_ipsum, brace: whether there is one.

    Line rules: at least `least` words, none longer than `longest` characters, no mention, and, if `ends`, a terminal end.
    """

    kind: ClassVar[str] = "c4"
    version: ClassVar[int] = 1
    gives: ClassVar[Mapping[str, str]] = {
        "lines": "int32",
        "kept_lines": "float32",
        "kept_bytes": "float32",
        "sentences": "int32",
        "terminal": "float32",
        "short_lines": "float32",
        "javascript": "int32",
        "policy": "int32",
        "longest_word": "int32",
        "lorem_ipsum": "bool",
        "brace": "bool",
    }

    ends: bool = True
    least: int = Field(default=3, ge=0)
    longest: int = Field(default=1000, ge=1)

    def __call__(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Needs the columns text and spans."""
        import numpy as np

        from upslope.data import prose, reference

        phrases, bounds = prose.joined(["lorem ipsum", "javascript", *reference.POLICY])
        short = np.array([prose.backward_hash(word) for word in reference.ABBREVIATIONS], np.uint64)
        texts = prose.prose_of(batch)
        return prose.frame(self.gives, prose.c4(*texts, self.ends, self.least, self.longest, phrases, bounds, short))
