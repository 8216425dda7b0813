"""The n-gram index against brute force without hashing, what edits and typesetting do to it, and the annotator on top."""

from __future__ import annotations

import gzip
import json
import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from upslope.config import Input, Source, UsageError
from upslope.data import contamination, ngrams, shards, words
from upslope.data import items as files
from upslope.data.annotators.origin import Origin, place, repository
from upslope.data.annotators.overlap import BoundOverlap, Overlap
from upslope.data.artifacts import Corpus
from upslope.data.ngrams import Index, Item, Match, Rules
from upslope.data.protocol import Rule
from upslope.machine.context import Context
from upslope.machine.files import digest_file, read_json
from upslope.stages.annotate import Annotate
from upslope.stages.curate import Curate
from upslope.tasks.artifacts import Tasks
from upslope.tasks.task import Task

PLANTED = Path(__file__).parents[2] / "upslope" / "assets" / "planted.json"
FILLER = "The server reads its configuration from the file and writes the log to the directory given by the option. " * 20


def batch(*texts: str | None) -> pa.RecordBatch:
    return shards.rows_to_batch([{"text": t} for t in texts], shards.TEXT)


def best(index: Index, text: str) -> Match:
    return max(index.look(text), key=lambda m: m.coverage, default=Match(-1, 0.0, None, False, -1))


# ── brute force ───────────────────────────────────────────────────────────────────────────────────────────────────

Run = tuple[str, ...]


def runs_of(tokens: Sequence[str], width: int) -> list[Run]:
    return [tuple(tokens[i : i + width]) for i in range(len(tokens) - width + 1)] if width else []


def runs(part: str, kind: str, r: Rules) -> list[Run]:
    """The runs that a part is made of."""
    tokens = part.split()
    whole = len(tokens) < r.gram or (kind != "option" and len(tokens) <= r.short)
    return runs_of(tokens, len(tokens) if whole else r.gram)


def worth(run: Run, r: Rules) -> float:
    return len(run) / r.gram if len(run) < r.gram else max(1, len(run) - r.gram + 1)


def starts(text: list[str], run: Run) -> list[int]:
    return [p for p in range(len(text) - len(run) + 1) if tuple(text[p : p + len(run)]) == run]


def brute(items: list[Item], text: str, r: Rules, background: Sequence[str] = ()) -> dict[int, tuple[float, float | None, bool]]:
    """item → (coverage, answer coverage, exact), by the definition, one window after the other."""
    page = text.split()
    owned: list[set[Run]] = []
    for it in items:
        parts = [(it.question, "question"), *((o, "option") for o in it.options), (it.answer, "answer")]
        owned.append({run for part, kind in parts for run in runs(part, kind, r)})

    def weight(run: Run) -> float:
        shared = sum(run in o for o in owned)
        return worth(run, r) / shared / max(1, sum(bool(starts(d.split(), run)) for d in background))

    def numbers(tokens: list[str], at: int, span: int) -> float:
        found = []
        for j, token in enumerate(tokens):
            if token[0].isdigit():
                places = [p for p in range(at, min(len(page), at + span)) if page[p] == token]
                before = any(j > 0 and p > 0 and page[p - 1] == tokens[j - 1] for p in places)
                after = any(j + 1 < len(tokens) and p + 1 < len(page) and page[p + 1] == tokens[j + 1] for p in places)
                found.append(before or after or (len(tokens) == 1 and bool(places)))
        return sum(found) / len(found) if found else 1.0

    def windowed(wanted: set[Run], span: int) -> tuple[int, set[Run]]:
        hits = sorted((p, run) for run in wanted for p in starts(page, run))
        best, where, inside = 0.0, -1, set[Run]()
        for at, _ in hits:
            here = {run for p, run in hits if at <= p < at + span}
            if sum(map(weight, here)) > best + 1e-12:
                best, where, inside = sum(map(weight, here)), at, here
        return where, inside

    out: dict[int, tuple[float, float | None, bool]] = {}
    for i, it in enumerate(items):
        question, answer = it.question.split(), it.answer.split()
        if len(question) < r.least:
            continue
        anchors = set(runs_of(question, min(r.gram, len(question))))
        anchors |= {run for o in it.options for run in runs_of(o.split(), r.gram)}
        anchors |= set(runs_of(answer, r.gram)) if len(answer) >= r.run else set()
        if sum(len(starts(page, a)) for a in anchors) < min(2, len(anchors)):
            continue
        asked = set(runs(it.question, "question", r)) | {run for o in it.options for run in runs(o, "option", r)}
        wide = {run for run in asked if len(run) >= r.gram} | set(runs(it.question, "question", r))
        length = len(question) + sum(len(o.split()) for o in it.options)
        span = math.ceil(r.window * length)
        at, inside = windowed(wide, span)
        coverage, same = 0.0, 1.0
        if at >= 0:
            inside |= {run for run in asked - wide if any(at <= p < at + span for p in starts(page, run))}
            coverage = sum(map(weight, inside)) / sum(map(weight, asked))
            same = numbers(question, at, span + r.gram)
            coverage *= 1 - r.numbers * (1 - same)
        reply: float | None = None
        if answer:
            said = set(runs(it.answer, "answer", r))
            if len(answer) <= r.short:
                reply = float(at >= 0 and any(at <= p < at + span for p in starts(page, tuple(answer))))
            else:
                own = math.ceil(r.window * len(answer))
                where, there = windowed(said, own)
                reply = sum(map(weight, there)) / sum(map(weight, said))
                reply *= 1 - r.numbers * (1 - numbers(answer, where, own + r.gram)) if where >= 0 else 0
        exact = any(starts(page, run) for run in runs_of(question, min(r.run, len(question)))) and (same > 0 or not r.numbers)
        for other in (*(o.split() for o in it.options), answer):
            exact |= len(other) >= r.run and any(starts(page, run) for run in runs_of(other, r.run))
        if coverage > 0 or reply or exact:
            out[i] = (coverage, reply, exact)
    return out


VOCABULARY = st.sampled_from(["ba", "ce", "di", "7", "31"])


def phrases(least: int, most: int) -> st.SearchStrategy[str]:
    return st.lists(VOCABULARY, min_size=least, max_size=most).map(" ".join)


ITEMS = st.lists(
    st.builds(Item, st.just("i"), st.just("b"), phrases(0, 14), phrases(0, 9), st.lists(phrases(1, 5), max_size=2).map(tuple)),
    min_size=1,
    max_size=5,
)
RULES = st.builds(
    Rules,
    st.integers(2, 4),
    st.integers(4, 8),
    st.integers(1, 4),
    st.integers(1, 6),
    st.sampled_from([1.0, 1.5, 3.0]),
    st.sampled_from([0.0, 0.75, 1.0]),
    st.just(1.0),
)


@settings(deadline=None, max_examples=100)
@given(ITEMS, phrases(0, 40), RULES, st.lists(phrases(0, 20), max_size=3), st.randoms(use_true_random=False))
def test_it_equals_brute_force(items: list[Item], text: str, r: Rules, background: list[str], chance: random.Random) -> None:
    items = [it for it in items if it.question]
    for it in items:  # so that there is something to find
        if chance.random() < 0.5:
            text += f" {it.question if chance.random() < 0.5 else it.question[: chance.randrange(len(it.question))]} {it.answer}"
    counts = ngrams.count(background, items, r) if background else None
    index = Index(items, r, counts)
    kept = [i for i, it in enumerate(items) if len(it.question.split()) >= r.least]
    assert [items[i] for i in kept] == index.kept
    inside = [items[i] for i in kept]
    want = brute(inside, text, r, background)
    found = {m.item: (m.coverage, m.answer, m.exact) for m in index.look(text)}
    assert found == {i: (pytest.approx(c), None if a is None else pytest.approx(a), e) for i, (c, a, e) in want.items()}


@settings(deadline=None, max_examples=30)
@given(ITEMS, phrases(5, 40))
def test_a_window_never_holds_more_than_the_page_and_unrelated_items_lower_nothing(items: list[Item], text: str) -> None:
    items = [it for it in items if len(it.question.split()) >= 4]
    narrow, whole = (Index(items, Rules(gram=3, short=4, window=w)) for w in (1.0, 100.0))
    strangers = [Item(f"s{i}", "s", f"quite other words {chr(97 + i)} that nobody wrote before") for i in range(8)]
    more = Index([*strangers[:3], *items, *strangers[3:]], Rules(gram=3, short=4))
    few = {m.item: m for m in Index(items, Rules(gram=3, short=4)).look(text)}
    for m in narrow.look(text):
        assert m.coverage <= {w.item: w.coverage for w in whole.look(text)}[m.item] + 1e-9
    assert {m.item - 3: m._replace(item=0) for m in more.look(text)} == {i: m._replace(item=0) for i, m in few.items()}


def test_items_in_another_order_and_texts_asked_again_give_the_same() -> None:
    r = random.Random(3)
    items = [Item(f"i{i}", "b", " ".join(r.choice(["ba", "ce", "di", "fo", "9"]) for _ in range(12))) for i in range(30)]
    text = " ".join(it.question[: r.randrange(5, 30)] for it in items)
    one, two = Index(items, Rules(short=4)), Index(items[::-1], Rules(short=4))
    found = {one.kept[m.item].id: (m.coverage, m.exact) for m in one.look(text)}
    assert found == {two.kept[m.item].id: (m.coverage, m.exact) for m in two.look(text)} and len(found) > 5
    assert one.look(text) == one.look(text)


def test_an_item_that_many_share_is_still_found_by_its_rarest_runs() -> None:
    items = [Item(f"i{i}", "b", "which of the following statements about the old harbour is true of them all") for i in range(200)]
    assert [(m.coverage, m.exact) for m in Index(items).look(items[0].question)] == [(1.0, True)] * 200


# ── what makes no difference, and what does ───────────────────────────────────────────────────────────────────────

FERRY = "A ferry carries 48 cars on each crossing and makes seven crossings before noon; how many of the 1,336 cars cross after it?"


@pytest.mark.parametrize(
    "text",
    [
        FERRY.upper(),
        FERRY.replace(",", "").replace(";", " —").replace("48", "**48**"),
        "> " + FERRY.replace(" on ", "\n> - on ").replace(" and ", "\n\n2. and ").replace(" before", "\n(b) before"),
        "| " + " | ".join(f"A. {w}" for w in FERRY.split()) + " |",
        "```text\n" + FERRY.replace(" ", "\n") + "\n```",
        "<p>" + FERRY.replace(" ", "&nbsp;").replace("cars", "<b>cars</b>") + "</p>",
        "".join(chr(ord(c) + 0xFEE0) if "!" <= c <= "~" else c for c in FERRY.replace("1,336", "1336")),
        FERRY.replace("ferry", "fe\u00adrry").replace("noon", "no\u200bon"),
        FERRY.replace("seven", "7"),
    ],
    ids=["case", "punctuation", "list", "table", "fence", "html", "full-width", "invisible", "digits"],
)
def test_typesetting_makes_no_difference(text: str) -> None:
    assert best(Index([Item("f", "b", FERRY)]), f"{FILLER}\n\n{text}\n\n{FILLER}")[:4] == (0, 1.0, None, True)


def test_words_are_told_apart_where_it_matters() -> None:
    def same(a: str, b: str) -> bool:
        return words.of(a).tolist() == words.of(b).tolist()

    assert same("3+4*2", "3 + 4 × 2") and not same("3+4", "3-4") and same("2019–2020", "2019-2020")
    assert not same("3.5 km", "35 km") and same("1,800.50", "1800.50") and not same("1,80", "180")
    assert same("don’t “do” it…", "don't do it") and same("AT&amp;T", "at&t") and same("café", "CAFE\u0301") and same("ﬁne", "fine")
    assert not same("one plus", "1 plus") and same("x < y and z", "x y and z") and words.of("").size == words.of("…! \x00").size == 0
    assert [int(w & 1) for w in words.of("in 1999 the 2nd x1 twelve").tolist()] == [0, 1, 0, 1, 0, 1]
    assert words.of("日本語の文書").size == 6 and words.of("ภาษาไทย").size == 7 and words.of("한국어 문서").size == 2


def test_problems_that_differ_in_their_numbers_only_are_others() -> None:
    area = "What is the area in square metres of a square field whose sides are all {} metres long?"
    index = Index([Item("f", "b", FERRY), Item("s", "b", area.format(14))])
    changed = FERRY.replace("48", "52").replace("seven", "nine").replace("1,336", "1,290")
    assert best(index, changed).coverage < 0.15 and best(index, FERRY.replace("48", "52")).coverage > 0.5
    assert best(index, area.format(15)).coverage < 0.25
    assert best(Index([Item("f", "b", FERRY)], Rules(numbers=0)), changed).coverage > 0.25
    long = "Work out, step by step and without any help of a machine or of a friend who knows it, how many birds are left of the 87"
    other, plain = long.replace("87", "89"), Index([Item("l", "b", long)], Rules(numbers=0))
    assert not best(Index([Item("l", "b", long)]), other).exact and best(plain, other).exact and best(plain, other).coverage > 0.9


def edit(text: str, share: float, r: random.Random) -> str:
    out: list[str] = []
    for word in text.split():
        if r.random() >= share:
            out.append(word)
        else:
            out += r.choice([[], [word, "really"], ["something"]])
    return " ".join(out)


def test_light_edits_are_found_and_innocent_questions_are_not() -> None:
    planted = [r["text"] for r in json.loads(PLANTED.read_text())["items"]]
    items = [Item(f"p{i}", "p", text) for i, text in enumerate(planted)]
    r, index = random.Random(5), Index(items)
    found = [best(index, f"{FILLER} {edit(text, r.uniform(0.02, 0.1), r)} {FILLER}") for text in planted for _ in range(5)]
    assert sum(m.coverage >= 0.4 and m.item == n // 5 for n, m in enumerate(found)) >= 0.9 * len(found)
    others = Index(items[::2])
    assert max(best(others, f"{FILLER} {text}").coverage for text in planted[1::2]) < 0.2 and others.look(FILLER) == []


def test_an_item_scattered_over_a_long_page_is_none() -> None:
    tokens = FERRY.split()
    torn = "".join(f"{' '.join(tokens[i : i + 6])} {FILLER} " for i in range(0, len(tokens), 6))
    near, far = (best(Index([Item("f", "b", FERRY)], Rules(window=w, numbers=0)), torn).coverage for w in (3, 100))
    assert near == pytest.approx(2 / 19) and far == pytest.approx(7 / 19)


def test_options_count_in_any_order_beside_the_question_only() -> None:
    options = ("the old stone bridge by the harbour", "a windmill", "the town gate", "no building at all")
    item = Item("m", "b", "Which building of the small town burnt down in the spring of the great flood?", "a windmill", options)
    index = Index([item])
    shuffled = f"{item.question}\nB) {options[3]}\nD) {options[0]}\nA) {options[1]}\nC) {options[2]}"
    assert best(index, shuffled)[:4] == (0, 1.0, 1.0, True)
    alone = best(index, item.question)
    assert 0.6 < alone.coverage < 1 and alone.answer == 0 and index.look(f"{options[1]} {options[2]} {options[3]}") == []
    far = best(index, f"{options[1]} {FILLER * 2} {item.question} {FILLER * 2} {options[2]}")
    assert far.coverage == pytest.approx(alone.coverage)


def test_short_questions_stand_whole_or_not_at_all_and_common_or_tiny_ones_are_left_out() -> None:
    items = [
        Item("short", "b", "reverse the letters of lampshade"),
        Item("tiny", "b", "what is it"),
        Item("stock", "b", "how do I install it"),
    ]
    index = Index(items)
    assert (index.too_short, index.common) == ([1], [])
    assert best(index, "Please reverse the letters of LAMPSHADE!")[:4] == (0, 1.0, None, True)
    assert index.look("reverse the letters of the lampshade") == [] and index.look("what is it") == []
    heard = ngrams.count(["How do I install it? Like this.", "nothing", "how do I install it on a train"], items)
    assert Index(items, background=heard).common == [2] and Index(items, Rules(common=0.7), heard).common == []


def test_wording_that_items_share_and_stock_phrases_count_for_little() -> None:
    items = [Item(f"t{i}", "b", f"Work out the following sum step by step and give only the number {100 + i} + {3 * i}") for i in range(50)]
    assert best(Index(items), "Work out the following sum step by step and give only the number: 9000 + 1").coverage < 0.1
    assert best(Index(items), f"Question. {items[7].question} Answer.")[:4] == (7, 1.0, None, True)
    quote = "to be or not to be that is the question"
    item = Item("q", "b", f"Who was it that says {quote} in the second scene at the castle?")
    stock = ngrams.count([quote, f"so {quote} indeed", "other"], [item])
    plain, rare = (best(Index([item], background=b), f"as they say {quote}").coverage for b in (None, stock))
    assert plain > 0.3 and rare == pytest.approx(plain / 2 / (1 - plain / 2))


def test_a_long_answer_is_found_without_its_question() -> None:
    solution = "First she sells nine of the forty jars at the market and then she gives each of her four cousins three of the rest"
    item = Item("s", "b", "How many jars are left in the cellar when the market has closed?", solution)
    found = best(Index([item]), f"{FILLER} {solution} {FILLER}")
    assert (found.coverage, found.answer, found.exact) == (0.0, 1.0, True) and Index([item]).long_answer(0)


def test_questions_without_blanks_between_words_are_found() -> None:
    question = "船が一回に四十八台の車を運び、正午までに七回往復するとき、午後に渡る車は何台か。"
    text = "これは別の文書です。" * 30
    assert best(Index([Item("j", "b", question)]), text + question.replace("、", "\n") + text)[:4] == (0, 1.0, None, True)
    assert Index([Item("j", "b", question)]).look(text) == []


@settings(deadline=None, max_examples=60)
@given(st.text(max_size=300), st.text(max_size=300))
def test_no_text_is_too_strange(question: str, text: str) -> None:
    question, text = (t.encode("utf-8", "ignore").decode() for t in (question, text))
    index = Index([Item("x", "b", question), Item("f", "b", FERRY)])
    assert all(0 <= m.coverage <= 1 for m in index.look(text + question + text))
    if words.of(question).size >= 4:
        assert any(m.item == 0 and m.exact for m in index.look(question))


@pytest.mark.parametrize("text", ["", "\x00" * 50, "a" * 10**6, "ab " * 300_000, "<" * 10**5, "&" * 10**5, "😀" * 9999, "| 1. " * 50_000])
def test_long_and_odd_texts_end(text: str) -> None:
    assert Index([Item("f", "b", FERRY), Item("a", "b", "ab ab ab ab ab ab ab ab ab ab")]).look(text) is not None


# ── item files ────────────────────────────────────────────────────────────────────────────────────────────────────

SHAPES: list[tuple[dict[str, Any], tuple[str, str, tuple[str, ...]]]] = [
    ({"question": "Q?", "choices": ["x", "y"], "answer": 1}, ("Q?", "y", ("x", "y"))),
    ({"question": "Q?", "choices": {"text": ["x", "y"], "label": ["1", "2"]}, "answerKey": "2"}, ("Q?", "y", ("x", "y"))),
    ({"question": "Q?", "options": {"A": "x", "B": "y"}, "answer": "A"}, ("Q?", "x", ("x", "y"))),
    ({"ctx": "Q", "endings": ["x", "y"], "label": "0"}, ("Q", "x", ("x", "y"))),
    ({"goal": "Q", "sol1": "x", "sol2": "y", "label": 1}, ("Q", "y", ("x", "y"))),
    ({"question": "Q?", "choices": [{"text": "x"}, {"text": "7"}], "answer": "7"}, ("Q?", "7", ("x", "7"))),
    ({"prompt": "P", "completion": "C"}, ("P", "C", ())),
    ({"problem": "P", "solution": "S"}, ("P", "S", ())),
    ({"context": "long", "question": "Q?", "answers": {"text": ["a", "b"]}}, ("Q?", "a", ())),
    ({"messages": [{"role": "user", "content": "U"}, {"role": "assistant", "content": "A"}]}, ("U", "A", ())),
    ({"row": {"question": "Q?", "answer": 2.5}}, ("Q?", "2.5", ())),
]


@pytest.mark.parametrize(("row", "want"), SHAPES)
def test_usual_shapes_of_items(row: dict[str, Any], want: tuple[str, str, tuple[str, ...]]) -> None:
    made = files.item(row, "f: item 0", "f", 4)
    assert (made.id, made.benchmark, made.question, made.answer, made.options) == ("f/4", "f", *want)


def test_items_of_files_and_folders(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"id": 7, "question": "Q one?", "dataset": "d"}, {"question": "Q two?", "passage": "P."}]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    (tmp_path / "b.json.gz").write_bytes(gzip.compress(json.dumps({"rows": rows}).encode()))
    pq.write_table(pa.Table.from_pylist([{"passage": None, **rows[0]}, rows[1]]), tmp_path / "c.parquet")
    (tmp_path / "notes.txt").write_text("no items")
    found = list(files.read(tmp_path, context=True))
    assert [(i.id, i.benchmark) for i in found] == [("7", "d"), ("a/1", "a"), ("7", "d"), ("b/1", "b"), ("7", "d"), ("c/1", "c")]
    assert {i.question for i in found} == {"Q one?", "P.\nQ two?"} and [i.question for i in files.read(tmp_path / "a.jsonl")][1] == "Q two?"


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.json", '[{"question": "x"}, {"answer": 3}]', r"a.json: item 1 asks nothing.*question(.|\n)*keys: answer(.|\n)*way out"),
        ("a.json", "[3]", "a.json: item 0 asks nothing"),
        ("a.json", '{"x": 1}', "a.json: expected a list of items"),
        ("a.jsonl", '{"question": "x"}\n{oops\n', "a.jsonl, line 2: not JSON"),
        ("a.jsonl.gz", "plain", "a.jsonl.gz: not readable"),
        ("a.parquet", "plain", "a.parquet: not a readable parquet file"),
    ],
)
def test_bad_item_files_say_where(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(UsageError, match=message):
        list(files.read(tmp_path / name))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="empty: no evaluation items"):
        list(files.read(tmp_path / "empty"))


# ── the annotator ─────────────────────────────────────────────────────────────────────────────────────────────────


def task(i: int) -> Task:
    return Task(f"t{i}", "add", ({"role": "user", "content": f"How many legs have {i} spiders and nine cats?"},), (), {"answer": "9"}, 1.0)


@pytest.fixture
def ctx(tmp_path: Path) -> Context:
    held = Tasks.write(tmp_path / "tasks", [(task(3), "train", "a"), (task(4), "heldout", "b")])
    (tmp_path / "items.json").write_text(json.dumps({"items": [{"id": "q", "question": "Which colour had the old gate of the mill?"}]}))
    corpus = Corpus.from_texts(tmp_path / "c", ["which colour had the old gate of the mill", *["nothing of interest"] * 7], "s")
    return Context.scratch(tmp_path / "s", tasks=held, docs=corpus)


def step_for(ctx: Context, **fields: Any) -> Overlap:
    return Overlap(against=(Input(stage="tasks"),), sources=(Source(uri=str(ctx.out.parent.parent / "items.json")),), **fields)


def test_it_takes_tasks_and_files_and_its_identity_is_their_content(ctx: Context, tmp_path: Path) -> None:
    bound = step_for(ctx).bind(ctx)
    assert isinstance(bound, BoundOverlap) and bound.column == "overlap" and bound.items.digest == digest_file(bound.items.path())
    assert ctx.facts == {"overlap": {"items": 2, "too_short": 0, "common": 0}}
    about = read_json(ctx.out / "columns" / "overlap@2" / "about.json")
    assert about["benchmarks"] == {n: {"items": 1, "too_short": 0, "common": 0} for n in ("add", "items")}
    rows = bound(
        batch(task(3).prompt, task(4).prompt + " 9", "which colour had the OLD gate, of the mill", "", None, "nothing")
    ).to_pylist()
    assert [(r["item"], r["benchmark"], r["exact"], r["words"], r["answer_coverage"]) for r in rows] == [
        (None, None, False, None, None),
        ("t4", "add", True, 9, 1.0),
        ("q", "items", True, 9, None),
        *[(None, None, False, None, None)] * 3,
    ]
    assert [r["coverage"] for r in rows] == [0, 1, 1, 0, 0, 0], "two runs of 9 words that differ in a number are no item"
    assert json.loads(rows[1]["hits"]) == {"add": [["t4", 1.0, True]]} and rows[0]["hits"] is None and rows[5]["hits"] is None
    assert [set(r) for r in rows] == [set(Overlap.gives)] * 6


def test_a_batch_in_parts_gives_the_same_columns(ctx: Context) -> None:
    bound = step_for(ctx).bind(ctx)
    texts = [task(3).prompt, "x", task(4).prompt, "", "which colour had the old gate of the mill"]
    whole = bound(batch(*texts))
    assert pa.Table.from_batches([bound(batch(t)) for t in texts]).combine_chunks() == pa.Table.from_batches([whole])
    assert bound(batch(*texts).slice(1, 3)).equals(whole.slice(1, 3)) and bound(batch()).num_rows == 0


def test_every_field_changes_what_is_found(ctx: Context, tmp_path: Path) -> None:
    question = "How many of the 12 green boats that lie in the harbour of the town on Monday morning belong to the 3 brothers of Anna"
    short = "install it on the new mail server"
    rows = [{"id": "boats", "question": question, "passage": "The boats are old."}, {"id": "s", "question": short}]
    (tmp_path / "items.json").write_text(json.dumps(rows))
    torn = "".join(f"{w} {'and so on ' * 9 * (i % 7 == 6)}" for i, w in enumerate(question.split()))
    pages = [question.replace("12", "14").replace("morning", "night"), f"how to {short}s", torn, short]
    stock = Corpus.from_texts(tmp_path / "d", [short, "belong to the 3 brothers of Anna"] * 20, "s")
    ctx._inputs = {**ctx._inputs, "stock": stock}

    def look(**fields: Any) -> list[Any]:
        ctx.facts.clear()
        bound = Overlap(sources=(Source(uri=str(tmp_path / "items.json")),), **fields).bind(ctx)
        return [*bound(batch(*pages)).to_pylist(), dict(ctx.facts)]

    plain, known = look(), look(background=Input(stage="stock"))
    changed = {"gram": 3, "run": 8, "least": 8, "short": 3, "window": 1.0, "numbers": 0.2, "floor": 0.9, "context": True}
    assert [name for name, value in changed.items() if look(**{name: value}) == plain] == []
    assert known != plain and look(background=Input(stage="stock"), common=0.6) != known
    assert look(background=Input(stage="stock"), sample=20) != known, "then every other document is counted: one of the two only"
    assert look(name="leaks")[-1].keys() == {"leaks"}


def test_errors_of_the_annotator(ctx: Context, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="all 2 items are left out: 2 have fewer than 30 words"):
        step_for(ctx, least=30).bind(ctx)
    with pytest.raises(UsageError, match="no items to look for"):
        Overlap().bind(ctx)
    with pytest.raises(ValidationError, match="run = 4 must be at least gram = 5"):
        Overlap(run=4)


def test_planted_items_of_the_crawl_are_found() -> None:
    rows = json.loads(PLANTED.read_text())["items"]
    index = Index(list(files.read(PLANTED)))
    for row in rows:
        found = best(index, f"{FILLER}\n\n{row['planted']}\n\n{FILLER}")
        assert index.kept[found.item].id == row["id"]
        if row["how"] != "edited":
            assert found.coverage == 1.0 and found.exact


# ── the whole corpus ──────────────────────────────────────────────────────────────────────────────────────────────


def test_matrix_and_verdict_of_a_corpus(tmp_path: Path) -> None:
    ask = [
        "How many boats lie in the old harbour of the town on Monday?",
        "Which bird sings first in the morning of a long day?",
        "When does the night train to the sea leave?",
    ]
    rows = [{"id": f"i{n}", "question": q, "benchmark": f"b{n % 2}"} for n, q in enumerate(ask)]
    rows += [{"id": "z", "question": "None of it at all is here", "benchmark": "clean"}]
    (tmp_path / "items.json").write_text(json.dumps(rows))
    texts = [f"Quiz. {ask[0]} Ten.", f"{ask[0]} {ask[1]}", "nothing here", ask[1].replace("long", "cold")]
    corpus = Corpus.from_texts(tmp_path / "c", texts, "wiki")
    step = Overlap(sources=(Source(uri=str(tmp_path / "items.json")),))
    noted = Annotate(corpus=Input(stage="docs"), steps=(step,)).run(Context.scratch(tmp_path / "n", docs=corpus))
    assert isinstance(noted, Corpus) and contamination.columns(noted) == ("overlap",)
    found = contamination.matrix(noted)
    assert [r[:5] for r in found] == [("b0", "wiki", 2, 1, 0.5), ("b1", "wiki", 2, 1, 1.0)]
    assert found[0].examples == ((0, "i0", 1.0), (1, "i0", 1.0)) and found[1].coverage == 1.0
    shown = [line.split()[:2] for line in contamination.render(found).split("\n")]
    assert shown == [["benchmark", "source"], ["b0", "wiki"], ["b1", "wiki"]]
    assert contamination.matrix(noted, threshold=0.99)[1].documents == 1

    def curated(name: str, *rules: Rule) -> dict[str, Any]:
        ctx = Context.scratch(tmp_path / name, docs=noted)
        Curate(corpus=Input(stage="docs"), rules=rules).run(ctx)
        return dict(ctx.facts["contamination"]["overlap"])

    seen = {b: (v["items"], v["left_out"], v["hit"], v["documents"], v["kept_hits"]) for b, v in curated("k").items()}
    assert seen == {"b0": (2, 0, 1, 2, 1), "b1": (1, 0, 1, 2, 1), "clean": (1, 0, 0, 0, 0)}
    left = curated("l", Rule(name="no items", keep="not overlap.exact"))
    assert {b: v["kept_hits"] for b, v in left.items()} == {"b0": 0, "b1": 1, "clean": 0} and left["b0"]["hit"] == 1
    assert left["b1"]["threshold"] == 0.4 and left["b1"]["method"].startswith("5-grams")
    plain = Context.scratch(tmp_path / "p", docs=corpus)
    Curate(corpus=Input(stage="docs")).run(plain)
    assert "contamination" not in plain.facts and contamination.columns(corpus) == ()


# ── origin ────────────────────────────────────────────────────────────────────────────────────────────────────────

URLS = [
    ("https://github.com/somebody/Human-Eval-fork/blob/main/data.jsonl", "github.com", "somebody/Human-Eval-fork", True),
    (
        "https://raw.githubusercontent.com/openai/grade-school-math/master/x.jsonl",
        "raw.githubusercontent.com",
        "openai/grade-school-math",
        True,
    ),
    ("https://github.com/python/cpython", "github.com", "python/cpython", False),
    ("https://github.com/about", "github.com", None, False),
    ("https://www.HuggingFace.co:443/datasets/x/y/viewer", "huggingface.co", None, True),
    ("https://huggingface.co/docs/x", "huggingface.co", None, False),
    ("https://web.archive.org/web/2020/https://github.com/a/lm-evaluation-harness", "github.com", "a/lm-evaluation-harness", True),
    ("https://r.jina.ai/https%3A%2F%2Fwww.kaggle.com%2Fdatasets%2Fz", "kaggle.com", None, True),
    ("https://cdn.jsdelivr.net/gh/hendrycks/test@master/x.csv", "cdn.jsdelivr.net", "hendrycks/test", True),
    ("https://example.com/why-github.com/a/human-eval", "example.com", None, False),
    ("notes.jsonl:3", None, None, None),
    ("http://[broken", None, None, None),
    ("", None, None, None),
]


def origin(step: Origin, *rows: tuple[str | None, str | None]) -> list[dict[str, Any]]:
    return step(shards.rows_to_batch([{"url": u, "date": d, "text": ""} for u, d in rows], shards.TEXT)).to_pylist()


@pytest.mark.parametrize(("url", "host", "repo", "mirror"), URLS)
def test_urls_of_benchmarks(url: str, host: str | None, repo: str | None, mirror: bool | None) -> None:
    assert origin(Origin(), (url, "")) == [{"host": host, "repo": repo, "mirror": mirror, "late": None}]


def test_every_field_of_origin_changes_the_result() -> None:
    urls = [("https://huggingface.co/datasets/x", "2024-05-01"), ("https://github.com/a/mbpp", "2021-05-01T10:00:00Z")]
    assert [r["mirror"] for r in origin(Origin(mirrors=()), *urls)] == [False, True]
    assert [r["mirror"] for r in origin(Origin(repos=("b/*",)), *urls)] == [True, False]
    assert [r["late"] for r in origin(Origin(after="2023-01-31"), *urls)] == [True, False]
    odd = [("", d) for d in ("", None, "1970-01-01", "0000-00-00", "9999-12-31", "yesterday", "2023-13-01", "2023-01-31T23:00:00Z")]
    assert [r["late"] for r in origin(Origin(after="2023-01-30"), *odd)] == [None] * 7 + [True]
    for bad in ("soon", "1970-01-01"):
        with pytest.raises(ValidationError, match="is not a date between"):
            Origin(after=bad)


@settings(deadline=None, max_examples=100)
@given(st.text(max_size=60).map(lambda t: t.encode("utf-8", "ignore").decode()), st.sampled_from(["", "https://", "http://github.com/"]))
def test_no_url_is_too_strange(text: str, before: str) -> None:
    host, path = place(before + text)
    assert isinstance(repository(host, path), str) and (host or not path)
    assert len(origin(Origin(), (before + text, text))) == 1
