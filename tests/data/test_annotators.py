"""Language, and the words that linking and overlap compare. The rules are in test_rules.py."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from upslope.data import hashing, shards
from upslope.data.annotators.langid import LangId


def batch(*texts: str, spans: list[tuple[int, int, int]] | None = None) -> pa.RecordBatch:
    given = [dict(zip(("start", "end", "kind"), s)) for s in spans] if spans else None
    return shards.rows_to_batch([{"text": t, "spans": given} for t in texts], shards.TEXT)


def test_languages_of_prose() -> None:
    english, korean = "This is a sentence about the weather and how it changes.", "이것은 한국어 문장입니다. 오늘 날씨가 매우 좋습니다."
    code = "```\n" + english * 20 + "\n```"
    rows = LangId()(batch(english, korean, "1 2 3")).to_pylist()
    assert [r["lang"] for r in rows] == ["en", "ko", None] and all(r["score"] is None or 0.5 < r["score"] <= 1 for r in rows)
    start = len(korean.encode())
    mixed = LangId()(batch(korean + code, spans=[(0, start, shards.PROSE), (start, start + len(code), shards.CODE)])).to_pylist()
    assert mixed[0]["lang"] == "ko"


def test_words_ignore_case_and_punctuation_and_count_unspaced_characters() -> None:
    def words(text: str) -> list[int]:
        return hashing.words(np.frombuffer(text.encode(), np.uint8)).tolist()

    assert words("Hello, WORLD!\n42") == words("hello world 42") and len(words("a-b c")) == 3
    assert words("日本 x") == words("日 本　x")[:2] + words("x") or len(words("日本 x")) == 3
    assert len(words("한국어 문서")) == 2 and words("") == [] and words("...") == []
