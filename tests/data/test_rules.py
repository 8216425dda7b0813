"""The rule annotators: compiled loops against `reference` on made-up, random and real text; datatrove's filters; hazard and lines."""

from __future__ import annotations

import json
import random
import re
import unicodedata
from collections.abc import Callable
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from upslope.config import Source, UsageError
from upslope.data import prose, reference, shards
from upslope.data.annotators.c4 import C4
from upslope.data.annotators.fineweb import FineWeb
from upslope.data.annotators.gopher import Gopher
from upslope.data.annotators.hazard import CATEGORIES, Hazard, read_hosts
from upslope.data.annotators.langid import LangId
from upslope.data.annotators.repeats import Repeats
from upslope.data.annotators.repetition import Repetition
from upslope.data.protocol import Annotate
from upslope.data.rewriters.lines import Lines

ASSETS = Path(__file__).parents[2] / "upslope" / "assets"
PAIRS: list[tuple[Annotate, Callable[[str], dict[str, Any]]]] = [
    (Gopher(), reference.gopher),
    (Gopher(stopwords=("der", "und", "x")), lambda t: reference.gopher(t, ("der", "und", "x"))),
    (Repetition(), reference.repetition),
    (C4(), reference.c4),
    (C4(ends=False, least=1, longest=5), lambda t: reference.c4(t, False, 1, 5)),
    (FineWeb(), reference.fineweb),
    (FineWeb(short=4), lambda t: reference.fineweb(t, 4)),
    (Repeats(), reference.repeats),
    (Repeats(longest=3, least=2), lambda t: reference.repeats(t, 3, 2)),
]


def rows(*texts: str, spans: list[tuple[int, int, int]] | None = None, url: str = "") -> pa.RecordBatch:
    given = [dict(zip(("start", "end", "kind"), s)) for s in spans] if spans else None
    return shards.rows_to_batch([{"url": url, "text": t, "spans": given} for t in texts], shards.TEXT)


def stored(value: float | bool | None) -> float | bool | None:
    return float(np.float32(value)) if isinstance(value, float) else value


def agree(texts: list[str]) -> None:
    batch = rows(*texts)
    for step, rule in PAIRS:
        for text, found in zip(texts, step(batch).to_pylist(), strict=True):
            assert found == {name: stored(value) for name, value in rule(text).items()}, (step, text)


@lru_cache(maxsize=1)
def pages() -> list[tuple[str, list[dict[str, int]]]]:
    """(text, spans) of every seventh of the first 400 pages of the crawl."""
    from upslope.data.extract.charset import decode
    from upslope.data.extract.html import extract
    from upslope.data.readers import ReadFile

    found: Any = (r for r in ReadFile()(ASSETS / "crawl.warc.gz") if isinstance(r, dict))
    out = []
    for row in islice(found, 0, 400, 7):
        page = extract(decode(row["html"], row["charset"]).text)
        out.append((page.text, [{"start": s, "end": e, "kind": k} for s, e, k in page.spans]))
    return out


def real() -> list[str]:
    return [shards.prose(text.encode(), spans).decode() for text, spans in pages() if len(text) < 40_000]


PIECES = """
the of That, (have) wörter 12 3.5 — #tag ... … a...b x WITH café to-be $ naïve. I ..... 日本語 です。 ภาษาไทย ٣ Mr.
e.g. U.S. end.) "Quote." [3] [edit] JavaScript { 😀 👍🏽 - * + • ■ # #### ==== || !! ?! 。 0, ﬁ ½ it's ‘x’ [12345678901] [a] der Und
""".split()  # noqa: SIM905
PIECES += ["[citation needed]", "[ 3]", "lorem ipsum", "privacy policy", "use Cookies", "\u3000", "\xa0", "\u2003", "\x00"]
GAPS = [" ", " ", " ", "\n", "\n\n", "\n- ", "\n# ", "\t", "\n\n\n", "", " \n \n", "\r\n"]


def samples(n: int, seed: int) -> list[str]:
    r = random.Random(seed)
    out = []
    for _ in range(n):
        pool = r.sample(PIECES, r.choice([2, 4, 10, len(PIECES)]))
        text = "".join(r.choice(pool) + r.choice(GAPS) for _ in range(r.choice([0, 1, 3, 10, 60, 200])))
        out.append(text * r.choice([1, 1, 1, 2, 5]))
    return out


def test_loops_equal_the_reference_on_made_up_text() -> None:
    agree(["", " \n\n ", "word", "same line\n" * 9, "a b c d e f g h i j k l " * 4, "0 " * 500, "哈" * 90, *samples(150, 1)])


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(max_size=120), max_size=4))
def test_loops_equal_the_reference_on_any_text(texts: list[str]) -> None:
    agree(texts)


def test_loops_equal_the_reference_on_crawled_pages() -> None:
    texts = [text for text in real() if len(text) < 5000]
    assert len(texts) >= 30
    agree(texts)


@pytest.mark.slow
def test_loops_equal_the_reference_on_thousands() -> None:
    agree(samples(3000, 2))
    agree(real())
    r = random.Random(4)
    ranges = [(0x20, 0x7F), (0x80, 0x3000), (0x3000, 0xD800), (0xE000, 0x110000), (0x20, 0x21)]
    agree(["".join(chr(r.randrange(*r.choice(ranges))) for _ in range(r.randint(0, 200))) for _ in range(2000)])


def test_batches_slices_and_order_do_not_matter() -> None:
    texts = samples(40, 3)
    batch = rows(*texts)
    for step, _ in PAIRS:
        whole = step(batch).to_pylist()
        assert [r for i in range(0, 40, 7) for r in step(batch.slice(i, 7)).to_pylist()] == whole
        assert step(rows(*reversed(texts))).to_pylist() == whole[::-1]
        assert step(batch.slice(0, 0)).num_rows == 0


def test_prose_of_a_batch_is_that_of_its_rows() -> None:
    batch = shards.rows_to_batch(
        [*({"text": t, "spans": s} for t, s in pages()), {"text": "no spans"}, {"text": None}, {"text": "x", "spans": []}], shards.TEXT
    )
    want = [shards.prose((r["text"] or "").encode(), r["spans"]) for r in batch.to_pylist()]
    for lo, n in ((0, batch.num_rows), (3, 20), (batch.num_rows - 3, 3)):
        found = prose.prose_of(batch.slice(lo, n))
        assert [found.data[a:b].tobytes() for a, b in zip(found.offsets, found.offsets[1:])] == want[lo : lo + n]
    text = prose.texts_of(batch.slice(5, 4))
    assert text.data.tobytes() == "".join(t for t, _ in pages()[5:9]).encode()


def test_kinds_of_characters_follow_unicode() -> None:
    wrong = known = 0
    for code in (*range(0xD800), *range(0xE000, 0x32000)):
        c = chr(code)
        assert (reference.kind(c) == reference.BLANK) == c.isspace()
        if unicodedata.category(c) not in ("Cn", "Co"):
            known += 1
            wrong += (unicodedata.category(c)[0] in "LM") != (reference.kind(c) >= reference.LETTER)
    assert wrong / known < 0.035  # numerals and symbols of rare scripts count as letters
    seen = [c for text, _ in pages() for c in text]
    odd = sum((unicodedata.category(c)[0] in "LM") != (reference.kind(c) >= reference.LETTER) for c in seen)
    assert odd / len(seen) < 1e-4
    text = "".join(map(chr, (*range(0xD800), *range(0xE000, 0x20100), *range(0x3FFF0, 0x40100), 0x10FFFF)))
    kinds = prose.texts_of(rows(text)).kinds
    starts = np.flatnonzero((np.frombuffer(text.encode(), np.uint8) & 0xC0) != 0x80)
    assert kinds[starts].tolist() == [reference.kind(c) for c in text]


def test_rules_look_at_prose_only_but_repeats_at_everything() -> None:
    text = "the words that be\n\n```\n{ # # # # 1 2 3 4\n```"
    batch = rows(text, spans=[(0, 17, shards.PROSE), (17, len(text), shards.CODE)])
    gopher, c4 = Gopher()(batch).to_pylist()[0], C4()(batch).to_pylist()[0]
    assert (gopher["words"], gopher["symbol_ratio"], gopher["stop_words"], c4["brace"], c4["lines"]) == (4, 0.0, 3, False, 1)
    assert Repeats()(batch).to_pylist()[0]["repeats"] == 4 and C4()(rows(text)).to_pylist()[0]["brace"]


def test_unspaced_scripts_get_counts_that_make_sense() -> None:
    text = "これは日本語の文書です。空白がありません。\n本文は三行あります。\nおわりです。"
    row = Gopher()(rows(text)).to_pylist()[0]
    assert {row[n] for n in ("words", "mean_word_length", "symbol_ratio", "alpha_words", "stop_words")} == {None}
    assert (row["units"], row["characters"], row["unspaced"], row["bullet_lines"]) == (33, 37, 1.0, 0.0)
    c4 = C4()(rows(text)).to_pylist()[0]
    assert (c4["kept_lines"], c4["sentences"], c4["terminal"]) == (1.0, 4, 1.0)
    assert FineWeb()(rows(text)).to_pylist()[0]["line_punct"] == 1.0
    assert Repeats()(rows("好" * 40)).to_pylist()[0] == {"repeats": 40, "period": 1, "share": 1.0}


SENTENCES = {
    "One. Two! Three? Four.": 4,
    "Mr. Smith of the U.S. Army came. He left.": 2,
    "It costs 3.5 dollars. see below": 1,
    "He said “No.” Then he went.": 2,
    "no end": 1,
    "...": 0,
    "版本一。版本二！": 2,
    "J. R. R. Tolkien wrote it.": 1,
}


@pytest.mark.parametrize(("line", "sentences"), SENTENCES.items())
def test_sentences(line: str, sentences: int) -> None:
    found = C4(ends=False, least=1)(rows(line)).to_pylist()[0]["sentences"]
    assert reference.sentences(line) == found == sentences


def test_repeats_against_brute_force() -> None:
    r = random.Random(5)
    for _ in range(150):
        words = [r.choice("abc") for _ in range(r.randint(0, 24))]
        best = 0
        for n in range(1, 14):
            for i in range(len(words) - n + 1):
                times = 1
                while words[i + n * times : i + n * times + n] == words[i : i + n]:
                    times += 1
                best = max(best, times)
        assert Repeats()(rows(" ".join(words))).to_pylist()[0]["repeats"] == best
    stutter = "Start here. " + "all work and no play " * 32 + "The end."
    assert Repeats()(rows(stutter)).to_pylist()[0]["repeats"] == 32 and Repeats()(rows(stutter)).to_pylist()[0]["period"] == 5
    assert Repeats(longest=4)(rows(stutter)).to_pylist()[0]["repeats"] == 1
    assert Repeats()(rows("-" * 900 + "\n" + "word " * 5)).to_pylist()[0]["repeats"] == 5


@pytest.mark.parametrize("part", ["a", "\n", "-", "😀", "漢", "a b ", "a\n", ".", "#", "[", "]", "[1]", "…", "\u202e", "é" * 999 + " "])
def test_hostile_text_takes_linear_time(part: str) -> None:
    batch = rows(part * (200_000 // len(part)))
    for step, _ in PAIRS:
        assert step(batch).num_rows == 1


# ── datatrove ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_repeated_ngrams_are_those_of_datatrove() -> None:
    peer = pytest.importorskip("datatrove.pipeline.filters.gopher_repetition_filter")
    texts = [*islice((t for t in real() if t.isascii() and t.split()), 25), "a b c d e f g h i j k l " * 4, "x y " * 30]
    assert len(texts) >= 10
    for text, row in zip(texts, Repetition()(rows(*texts)).to_pylist(), strict=True):
        words = text.split()
        for n in range(5, 11):
            assert row[f"dup_{n}"] == pytest.approx(peer.find_all_duplicate(words, n) / len(text), rel=1e-5), n
        for n in (2, 3, 4):
            grams = peer.get_n_grams(words, n)
            theirs = peer.find_top_duplicate(grams) / len(text) if len(set(grams)) < len(grams) else 0
            assert row[f"top_{n}"] >= theirs * (1 - 1e-5)  # theirs takes the first of several that are equally frequent
        lines = [line for line in (part.strip() for part in text.split("\n")) if line]
        assert row["line_dup"] == pytest.approx(peer.find_duplicates(lines)[0] / len(lines), rel=1e-5)


LIMITS = {
    "gopher": "50 <= words <= 100_000 and 3 <= mean_word_length <= 10 and symbol_ratio <= 0.1 and bullet_lines <= 0.9"
    " and ellipsis_lines <= 0.3 and alpha_words >= 0.8 and stop_words >= 2",
    "repetition": "line_dup <= 0.3 and para_dup <= 0.3 and line_dup_bytes <= 0.2 and para_dup_bytes <= 0.2 and top_2 <= 0.2"
    " and top_3 <= 0.18 and top_4 <= 0.16 and dup_5 <= .15 and dup_6 <= .14 and dup_7 <= .13"
    " and dup_8 <= .12 and dup_9 <= .11 and dup_10 <= .1",
    "c4": "sentences >= 5 and not lorem_ipsum and not brace",
    "fineweb": "line_punct >= 0.12 and short_lines <= 0.67 and dup_line_bytes <= 0.01 and newline_ratio <= 0.3",
}


def test_decisions_agree_with_datatrove_on_english(monkeypatch: pytest.MonkeyPatch) -> None:
    filters = pytest.importorskip("datatrove.pipeline.filters")
    from datatrove.data import Document
    from datatrove.pipeline.filters import c4_filters, fineweb_quality_filter, gopher_quality_filter, gopher_repetition_filter

    def words(text: str, _: str) -> list[str]:
        return text.split()  # as the paper counts; spaCy, which is not installed, makes a word of each punctuation mark

    def sentences(text: str, _: str) -> list[str]:
        return re.split(r"(?<=[.!?])[\"')\]]*\s+(?=[A-Z\"'(\[])", text)

    for module in (gopher_quality_filter, gopher_repetition_filter, fineweb_quality_filter):
        monkeypatch.setattr(module, "split_into_words", words)
    monkeypatch.setattr(c4_filters, "split_into_sentences", sentences)
    texts = [re.sub(r"\n+", "\n", t).strip() for t in real() if len(t) > 200 and sum(c.isascii() for c in t) > 0.97 * len(t)]
    texts += [t[: len(t) // k].strip() for t in texts for k in (3, 12)]
    texts += [t + "\n" + "\n".join(t.split("\n")[::-1][:6]) for t in texts[:20]]
    texts = [t for t in texts if len(t.split()) >= 40]  # in a few words, any n-gram is a large part, and theirs counts what occurs once
    assert len(texts) >= 80
    ours = {"gopher": Gopher(), "repetition": Repetition(), "c4": C4(), "fineweb": FineWeb()}
    theirs = {
        "gopher": filters.GopherQualityFilter(),
        "repetition": filters.GopherRepetitionFilter(),
        "c4": filters.C4QualityFilter(),
        "fineweb": filters.FineWebQualityFilter(),
    }
    for name, step in ours.items():
        kept = [bool(eval(LIMITS[name], {}, row)) for row in step(rows(*texts)).to_pylist()]
        peer = [theirs[name].filter(Document(text=t, id="")) is True for t in texts]
        share = sum(a == b for a, b in zip(kept, peer)) / len(texts)
        print(f"{name}: {len(texts)} documents, kept {sum(kept)} and {sum(peer)}, same decision {share:.3f}")
        assert share >= 0.9, name
        assert 0 < sum(peer) < len(texts)


# ── language, hazard, lines ──────────────────────────────────────────────────────────────────────────────────────


def test_language_fields() -> None:
    text = "Dies ist ein deutscher Satz über das Wetter. " + "This is an English sentence about the weather. " * 40
    assert LangId(chars=40)(rows(text)).to_pylist()[0]["lang"] == "de" and LangId()(rows(text)).to_pylist()[0]["lang"] == "en"
    assert LangId(least=10_000)(rows(text)).to_pylist()[0] == {"lang": None, "score": None}


INNOCENT = (
    """
Kill the process with signal 9 and restart it.|The bomb calorimeter measures heat.|Explosive growth in sales.|Escort the guest to the door.
Overdose warnings are on the label.|The child class overrides the adult class.|Shoot the scene at night.|The gun metal finish is grey.
A drug trial in 2019.|Sexual reproduction in ferns.|Breast cancer screening saves lives.|The trigger fires before insert.|Hit the target.
A cocktail of methods.|Master and slave nodes.|The rooster is also called a cock.|Dick Cheney was vice president.|Assassin's Creed.
Scunthorpe is a town in Lincolnshire.|Nuclear fusion.|The virus scanner is up to date.|An injection attack on the database.|Cut here.
The attack surface is small.|Weed the garden in spring.|Grass grows fast.|He is on the suicide squad list.|Poison the cache.
Execute the child.|Abort the transaction.|Dead letter queue.|Strip whitespace.|Analysis of the assets.|Titanic and the cumulative sum.
""".strip()
    .replace("\n", "|")
    .split("|")
)


def test_hazard_counts_cues_by_category_and_leaves_everyday_text_alone() -> None:
    filler = "The weather was fine and we walked along the river. " * 10
    cues = {
        "self_harm": "I want to kill myself",
        "weapons": "a pipe bomb",
        "cbrn": "a nerve agent",
        "drugs": "a meth lab",
        "adult": "nude pics",
        "hate": "a race traitor",
    }
    found = Hazard()(rows(*(f"{filler} {cue}." for cue in cues.values()))).to_pylist()
    for name, row in zip(cues, found, strict=True):
        assert max(CATEGORIES, key=lambda c, row=row: row[c]) == name and row["hits"] == 1 and row["score"] == row[name] > 5
        words = len(re.findall(r"\w+", f"{filler} {cues[name]}"))
        assert row[name] == pytest.approx(1000 * (2 if name == "cbrn" else 3) / words, rel=1e-6)
    harmless = Hazard()(rows(*INNOCENT)).to_pylist()
    wrong = [text for text, row in zip(INNOCENT, harmless) if row["score"]]
    on_pages = [row["score"] for row in Hazard()(rows(*real())).to_pylist() if row["score"]]
    print(f"{len(wrong)} of {len(INNOCENT)} everyday sentences ({wrong}), {len(on_pages)} of {len(real())} documentation pages have a cue")
    assert len(wrong) <= 1 and not on_pages
    assert Hazard()(rows("", "...")).to_pylist()[0]["score"] is None


def test_hazard_takes_the_longest_phrase_and_other_lists(tmp_path: Path) -> None:
    file = tmp_path / "terms.json"
    terms = {"terms": {"drugs": {"red tea": 1, "red tea leaf": 5, "leaf": 9}}, "hashes": {"hate": [f"{prose.fnv(b'green tea'):016x}"]}}
    file.write_text(json.dumps(terms))
    row = Hazard(terms=Source(uri=str(file)))(rows("Red  TEA, leaf and red tea; Green-tea")).to_pylist()[0]
    assert row["drugs"] == pytest.approx(1000 * 6 / 8) and row["hate"] == pytest.approx(1000 / 8) and row["hits"] == 3
    file.write_text('{"terms": {"politics": {"x": 1}}, "hashes": {}}')
    with pytest.raises(UsageError, match="not a file of terms"):
        Hazard(terms=Source(uri=str(file)))(rows("x"))


def test_blocked_hosts_and_the_domains_below_them(tmp_path: Path) -> None:
    file = tmp_path / "hosts.txt"
    file.write_text("# list\n0.0.0.0 ads.example.org  # tracker\n||spam.example^\n\n")
    step = Hazard(hosts=("Bad.example",), lists=(Source(uri=str(file)),))
    urls = {
        "https://bad.example/x": True,
        "http://a.b.BAD.example:80/": True,
        "https://notbad.example/": False,
        "https://ads.example.org/": True,
        "https://example.org/": False,
        "//spam.example/x": True,
        "no url": None,
        "": None,
        "http://[": None,
    }
    batch = shards.rows_to_batch([{"url": u, "text": "t"} for u in urls], shards.TEXT)
    assert [r["blocked"] for r in step(batch).to_pylist()] == list(urls.values())
    assert not any(r["blocked"] for r in Hazard()(batch).to_pylist())
    file.write_text("ok.example\n<html>\n")
    with pytest.raises(UsageError, match="line 2"):
        read_hosts(file, "other")


PAGE = """# Title

We use cookies to make this better.
A fact.[3] It stays [here](x), as `a[0]` does.

Please enable JavaScript to see comments.

Last words[citation needed] here.

Read our Privacy Policy."""


def test_lines_takes_boilerplate_out_and_keeps_spans_true() -> None:
    texts, spans, notes = Lines()(rows(PAGE))
    assert texts[0].as_py() == "# Title\n\nA fact. It stays [here](x), as `a[0]` does.\n\nLast words here."
    assert spans is not None and spans.to_pylist() == [None]
    assert notes.to_pylist() == [{"lines": 3, "bytes": len(PAGE) - len(texts[0].as_py()), "citations": 2}]

    def left(*rules: Any, text: str = PAGE, **config: int) -> str:
        return str(Lines(rules=rules, **config)(rows(text))[0][0].as_py())

    assert left("citations") == PAGE.replace("[3]", "").replace("[citation needed]", "")
    assert "cookies" not in left("policy") and "JavaScript" in left("policy") and "cookies" in left("javascript")
    assert (
        left("terminal").startswith("We use cookies")
        and left("short", least=5).startswith("We use")
        and left("long", longest=6) == "# Title"
    )
    assert left("lorem_ipsum", text="Lorem ipsum dolor\n\nx") == "x" and left("policy", text="use cookies") == ""


@settings(max_examples=80, deadline=None)
@given(
    st.lists(
        st.sampled_from(["use cookies", "text here.[2]", "", "javascript", "ü[edit]", "```\nuse cookies[1]\n```", "$x[3]$"]), max_size=9
    )
)
def test_lines_leaves_other_spans_as_they_are(parts: list[str]) -> None:
    text, at, spans = "\n".join(parts).encode(), 0, []
    for part in parts:
        kind = shards.CODE if part.startswith("`") else shards.MATH if part.startswith("$") else shards.PROSE
        end = min(at + len(part.encode()) + 1, len(text))
        if end > at:
            spans.append((at, end, kind))
        at = end
    new, found, _ = Lines()(rows(text.decode(), spans=spans or [(0, 0, 0)]))
    out, cuts = new[0].as_py().encode(), found[0].as_py() if found is not None else []
    kept = [text[a:b] for a, b, kind in spans if kind != shards.PROSE]
    assert [out[s["start"] : s["end"]] for s in cuts if s["kind"] != shards.PROSE] == kept
    ours = b"".join(out[s["start"] : s["end"]] for s in cuts if s["kind"] == shards.PROSE)
    assert b"cookies" not in ours and b"javascript" not in ours and b"[" not in ours
    assert ours.count(b"text here.") == parts.count("text here.[2]") and ours.count("ü".encode()) == parts.count("ü[edit]")
    assert all(x["end"] == y["start"] for x, y in zip(cuts, cuts[1:])) and (not cuts or cuts[-1]["end"] == len(out))
