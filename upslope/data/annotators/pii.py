"""pii: how many e-mail addresses, telephone numbers, addresses of machines, account numbers and secrets stand in a page.

All of the text is looked at: keys are mostly in code. What counts, and what is left out, is said in `data.pii`; `rewriters/mask.py` puts
placeholders in their places. Measured on planted examples in `tests/data/test_pii.py`.

Source: Soldaini et al. 2024 (Dolma, arXiv 2402.00159), section 5.3, drops pages with six or more hits, and masks others.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from upslope.data.protocol import Annotate

if TYPE_CHECKING:
    import pyarrow as pa


class Pii(Annotate):
    """Counts by kind, and `total`. also_code: look at code spans too."""

    kind: ClassVar[str] = "pii"
    version: ClassVar[int] = 1
    gives: ClassVar[Mapping[str, str]] = {
        "email": "int32",
        "phone": "int32",
        "ip": "int32",
        "card": "int32",
        "iban": "int32",
        "ssn": "int32",
        "secret": "int32",
        "total": "int32",
    }

    also_code: bool = True

    def __call__(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Needs the columns text and spans."""
        import numpy as np

        from upslope.data import pii, prose

        counts = np.zeros((batch.num_rows, len(self.gives)))
        names = list(self.gives)
        for row, hits in enumerate(pii.hits(batch, pii.KINDS, self.also_code)):
            for hit in hits:
                counts[row, names.index(hit.kind)] += 1
        counts[:, -1] = counts.sum(1)
        return prose.frame(self.gives, counts)
