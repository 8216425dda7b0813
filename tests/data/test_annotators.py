"""Annotators against brute force, and overlap against planted items."""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from upslope.config import Input, Source, UsageError
from upslope.data import hashing, shards
from upslope.data.annotators.gopher import STOP_WORDS, Gopher
from upslope.data.annotators.langid import LangId
from upslope.data.annotators.overlap import BoundOverlap, Index, Overlap, read_items
from upslope.data.annotators.repetition import Repetition
from upslope.machine.context import Context
from upslope.machine.files import digest_file
from upslope.tasks.artifacts import Tasks
from upslope.tasks.task import Task


def batch(*texts: str, spans: list[tuple[int, int, int]] | None = None) -> pa.RecordBatch:
    given = [dict(zip(("start", "end", "kind"), s)) for s in spans] if spans else None
    return shards.rows_to_batch([{"text": t, "spans": given} for t in texts], shards.TEXT)


def letters(word: str) -> bool:
    return any((c.isascii() and c.isalpha()) or ord(c) > 127 for c in word)


def gopher_reference(text: str) -> dict[str, float | None]:
    tokens = re.findall(r"[^ \t\n\v\f\r]+", text)
    words = [t for t in tokens if letters(t) or any(c in "0123456789" for c in t)]
    lines = [line.strip(" \t\v\f\r") for line in text.split("\n")]
    lines = [line for line in lines if line]
    plain = [line.lstrip("#") for line in lines]
    symbols = sum(line.count("#") + line.count("...") + line.count("…") for line in plain)
    stripped = {re.sub(r"^[^A-Za-z\u0080-\U0010ffff]+|[^A-Za-z\u0080-\U0010ffff]+$", "", t).lower() for t in tokens}

    def share(n: int, d: int) -> float | None:
        return n / d if d else None

    return {
        "words": len(words),
        "mean_word_length": share(sum(map(len, words)), len(words)),
        "symbol_ratio": share(symbols, len(tokens)),
        "bullet_lines": share(sum(line[0] in "-*•" for line in lines), len(lines)),
        "ellipsis_lines": share(sum(line.endswith(("...", "…")) for line in lines), len(lines)),
        "alpha_words": share(sum(map(letters, tokens)), len(tokens)),
        "stop_words": len(stripped & set(STOP_WORDS)),
    }


def repetition_reference(text: str) -> dict[str, float]:
    out: dict[str, float] = {}
    for name, parts in (("line", re.split(r"\n", text)), ("para", re.split(r"\n{2,}", text))):
        found = [p.strip(" \t\n\v\f\r") for p in parts]
        found = [p for p in found if p]
        seen: set[str] = set()
        again = [p for p in found if p in seen or seen.add(p)]  # type: ignore[func-returns-value]
        out[f"{name}_dup"] = len(again) / len(found)
        out[f"{name}_dup_bytes"] = sum(len(p.encode()) for p in again) / sum(len(p.encode()) for p in found)
    tokens = re.findall(r"[^ \t\n\v\f\r]+", text)
    size = len(text.encode())
    for n in (2, 3, 4):
        grams = Counter(tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1))
        best = max(grams.values(), default=0)
        out[f"top_{n}"] = max((c * len("".join(g).encode()) for g, c in grams.items() if c == best), default=0) / size if best > 1 else 0.0
    for n in range(5, 11):
        met: set[tuple[str, ...]] = set()
        i = total = 0
        while i < len(tokens) - n + 1:
            gram = tuple(tokens[i : i + n])
            if gram in met:
                total += len("".join(gram).encode())
                i += n
            else:
                met.add(gram)
                i += 1
        out[f"dup_{n}"] = total / size
    return out


def samples() -> list[str]:
    r = random.Random(7)
    pieces = ["the", "of", "That,", "(have)", "wörter", "12", "3.5", "—", "#tag", "...", "und so…", "a...b", "x", "WITH", "café", "be"]
    pieces += ["to-be", "$", "naïve.", "I", "....."]
    texts = ["", " \n\n ", "word", "# Heading\n\n- a\n- b\n* c\n• d\n\nthe end...\n"]
    for _ in range(40):
        text = ""
        for _ in range(r.randint(1, 120)):
            text += r.choice(pieces) + r.choice([" ", " ", " ", "\n", "\n\n", "\n- ", "\n# ", "\t", "\n\n\n"])
        texts.append(text)
    texts += [texts[5] * 3, "same line\n" * 9, "a b c d e f g h i j k l " * 4]
    return texts


def test_gopher_equals_brute_force() -> None:
    found = Gopher()(batch(*samples())).to_pylist()
    for text, row in zip(samples(), found):
        for name, value in gopher_reference(text).items():
            assert row[name] == (None if value is None else pytest.approx(value, rel=1e-6)), (name, text)


def test_repetition_equals_brute_force() -> None:
    found = Repetition()(batch(*samples())).to_pylist()
    for text, row in zip(samples(), found):
        if not text.split():
            assert set(row.values()) == {None}
        else:
            assert row == pytest.approx(repetition_reference(text), rel=1e-5), text


def test_rules_look_at_prose_only_and_say_nothing_of_unspaced_scripts() -> None:
    text = "the words that be\n\n```\n# # # # 1 2 3 4\n```"
    row = Gopher()(batch(text, spans=[(0, 17, shards.PROSE), (17, len(text), shards.CODE)])).to_pylist()[0]
    assert (row["words"], row["symbol_ratio"], row["stop_words"]) == (4, 0.0, 3)
    assert set(Gopher()(batch("これは日本語の文書です。空白がありません。")).to_pylist()[0].values()) == {None}


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


PLANTED = Path(__file__).parents[2] / "upslope" / "assets" / "planted.json"


def test_overlap_finds_planted_items_exact_edited_and_torn_and_no_innocent_text() -> None:
    items = list(read_items(PLANTED))
    planted = json.loads(PLANTED.read_text())["items"]
    index = Index(items)
    filler = "The server reads its configuration from the file and writes the log to the directory given by the option. " * 20
    assert len(planted) >= 20
    for row in planted:
        hit = index.look(f"{filler}\n\n{row['planted']}\n\n{filler}")
        assert hit.item == row["id"] and hit.coverage > 0.4, (row["how"], hit)
        if row["how"] != "edited":
            assert hit.exact and hit.coverage == pytest.approx(1.0)
        words = row["planted"].split()
        torn = " ".join(" ".join(words[i : i + 10]) + "\n\n" + filler for i in range(0, len(words), 10))
        assert index.look(torn).item == row["id"] and (row["how"] == "edited" or index.look(torn).coverage > 0.5)
    others = Index([items[i] for i in range(0, len(items), 2)])
    for name, text in items[1::2]:
        hit = others.look(f"{filler} {text}")
        assert hit.coverage < 0.2 and not hit.exact, (name, hit)
    assert index.look(filler) == (0.0, None, None, False) and index.look("") == (0.0, None, None, False)


def test_wording_that_items_share_counts_for_little() -> None:
    items = [(f"t{i}", f"Work out the following sum step by step and give only the number: {100 + i} + {3 * i}") for i in range(50)]
    index = Index(items)
    same_wording = index.look("Work out the following sum step by step and give only the number: 9000 + 1")
    the_item = index.look(f"Question. {items[7][1]} Answer.")
    assert same_wording.coverage < 0.3 and not same_wording.exact and the_item == (1.0, "t7", 15, True)


def test_short_items_must_stand_whole_and_tiny_ones_are_left_out() -> None:
    index = Index([("short", "reverse the letters of lampshade"), ("tiny", "what is it")])
    assert index.skipped == 1
    assert index.look("Please reverse the letters of LAMPSHADE!").exact
    assert index.look("reverse the letters of the lampshade").coverage == 0 and index.look("what is it").item is None


def test_overlap_takes_tasks_and_files_and_its_identity_is_their_content(tmp_path: Path) -> None:
    def task(i: int) -> Task:
        return Task(f"t{i}", "add", ({"role": "user", "content": f"How many legs have {i} spiders and nine cats together?"},), (), {}, 1.0)

    tasks = [task(3), task(4)]
    held = Tasks.write(tmp_path / "tasks", [(tasks[0], "train", "a"), (tasks[1], "heldout", "b")])
    (tmp_path / "items.json").write_text(json.dumps({"items": [{"id": "q", "question": "Which colour had the old gate of the mill?"}]}))
    step = Overlap(against=(Input(stage="tasks"),), sources=(Source(uri=str(tmp_path / "items.json")),))
    ctx = Context.scratch(tmp_path / "s", tasks=held)
    bound = step.bind(ctx)
    assert ctx.facts == {"overlap": {"items": 2, "too_short": 0}}
    assert isinstance(bound, BoundOverlap) and bound.column == "overlap"
    rows = bound(batch(tasks[0].prompt, tasks[1].prompt, "which colour had the OLD gate, of the mill")).to_pylist()
    assert [(r["item"], r["exact"]) for r in rows] == [("t4", False), ("t4", True), ("q", True)] and rows[0]["coverage"] < 1
    assert bound.items.digest == digest_file(bound.items.path())
    with pytest.raises(UsageError, match="all 2 items have fewer than 30 words"):
        step.replace(least=30).bind(ctx)
    with pytest.raises(UsageError, match="no items to look for"):
        Overlap().bind(Context.scratch(tmp_path / "t"))
    (tmp_path / "bad.json").write_text('[{"answer": 3}]')
    with pytest.raises(UsageError, match=r"item 0 has no 'text'"):
        list(read_items(tmp_path / "bad.json"))
