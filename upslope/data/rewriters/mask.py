"""mask: placeholders in the place of personal data and secrets, outside code.

    Write to anna@uni.de or +49 30 901820.   →   Write to <EMAIL> or <PHONE>.

What counts is said in `data.pii`. Source: Soldaini et al. 2024 (Dolma, arXiv 2402.00159), section 5.3; Penedo et al. 2024 (FineWeb).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from upslope.data.protocol import Rewrite

if TYPE_CHECKING:
    import pyarrow as pa

    from upslope.data.edits import Edit, Spans

Kind = Literal["secret", "iban", "card", "ssn", "email", "ip", "phone"]


class Mask(Rewrite):
    """masked: how many were replaced, and how many of each kind. kinds: which; also_code: in code spans too (it may then no longer run)."""

    kind: ClassVar[str] = "mask"
    version: ClassVar[int] = 1
    gives: ClassVar[Mapping[str, str]] = {
        "masked": "int32",
        "secret": "int32",
        "iban": "int32",
        "card": "int32",
        "ssn": "int32",
        "email": "int32",
        "ip": "int32",
        "phone": "int32",
    }

    kinds: tuple[Kind, ...] = Field(default=("secret", "iban", "card", "ssn", "email", "ip", "phone"), min_length=1)
    also_code: bool = False

    def __call__(self, batch: pa.RecordBatch) -> tuple[pa.Array, pa.Array | None, pa.RecordBatch]:
        """Needs the columns text and spans."""
        import numpy as np

        from upslope.data import edits, pii, prose

        found = list(pii.hits(batch, self.kinds, self.also_code))

        def placeholders(row: int, text: bytes, spans: Spans) -> list[Edit]:
            return [edits.Edit(hit.start, hit.end, f"<{hit.kind.upper()}>".encode()) for hit in found[row]]

        texts, spans = edits.rewrite(batch, placeholders)
        counts = [[len(hits), *(sum(hit.kind == kind for hit in hits) for kind in pii.KINDS)] for hits in found]
        return texts, spans, prose.frame(self.gives, np.array(counts, np.float64).reshape(-1, len(self.gives)))
