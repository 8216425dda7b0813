"""repeats: the longest stutter of a document: one n-gram over and over, with nothing between.

Source: OLMo 2 (arXiv 2501.00656), section 3.1: documents with 32 or more repeats of an n-gram of 1 to 13 tokens made the loss spike, and
are dropped: `repeats.repeats < 32`. There, tokens are those of the model; here, pieces that do not depend on one: words, letters of
unspaced scripts, and runs of one symbol (so that a ruled line is one piece). Unlike the other rules it looks at all of the text, since
a table of zeros makes a loss spike as well as a sentence does.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from upslope.data.protocol import Annotate

if TYPE_CHECKING:
    import pyarrow as pa


class Repeats(Annotate):
    """repeats: the most times in a row that an n-gram of 1 to `longest` pieces stands (1 where none is repeated, 0 for no text); period:
    its n, the smallest one; share: part of the bytes (without blanks) in runs of at least `least` repeats, NULL for no text."""

    kind: ClassVar[str] = "repeats"
    version: ClassVar[int] = 1
    gives: ClassVar[Mapping[str, str]] = {"repeats": "int32", "period": "int32", "share": "float32"}

    longest: int = Field(default=13, ge=1)
    least: int = Field(default=32, ge=2)

    def __call__(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Needs the column text."""
        from upslope.data import prose

        return prose.frame(self.gives, prose.repeats(*prose.texts_of(batch), self.longest, self.least))
