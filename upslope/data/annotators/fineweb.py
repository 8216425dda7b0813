"""fineweb: the line statistics that FineWeb adds to the C4 and Gopher rules, over prose only.

Source: Penedo et al. 2024 (arXiv 2406.17557), section 3.6; limits as in datatrove: line_punct ≥ 0.12, short_lines ≤ 0.67,
dup_line_bytes ≤ 0.01, newline_ratio ≤ 0.3.

Unlike datatrove: code, formulas and tables are left out; a line break counts once however many empty lines follow (our text is
Markdown, with an empty line between paragraphs); lines are compared without the blanks around them, by bytes; words stand between
blanks, and letters of unspaced scripts one by one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from upslope.data.protocol import Annotate

if TYPE_CHECKING:
    import pyarrow as pa


class FineWeb(Annotate):
    """line_punct: share of lines that end a sentence; short_lines: share with at most `short` characters; dup_line_bytes: share of bytes
    in lines that occurred before; newline_ratio: breaks between lines / words. NULL without prose."""

    kind: ClassVar[str] = "fineweb"
    version: ClassVar[int] = 1
    gives: ClassVar[Mapping[str, str]] = {
        "line_punct": "float32",
        "short_lines": "float32",
        "dup_line_bytes": "float32",
        "newline_ratio": "float32",
    }

    short: int = Field(default=30, ge=0)

    def __call__(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Needs the columns text and spans."""
        from upslope.data import prose

        return prose.frame(self.gives, prose.fineweb(*prose.prose_of(batch), self.short))
