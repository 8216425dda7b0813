"""Bits per byte, the bigram, tables and accuracy, each against something independent."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from upslope.chat.render import ChatML
from upslope.config import UsageError
from upslope.evals.accuracy import answers, select, with_system
from upslope.evals.artifacts import Condition, Row, Table, estimate
from upslope.evals.bigram import Bigram
from upslope.evals.nll import document_nats, windows
from upslope.evals.subject import Deployment, Subject
from upslope.generate.engine import Completion, Request, Sampling, Stop
from upslope.machine.rng import rng
from upslope.model.config import Normal, dense
from upslope.model.init import initialise
from upslope.model.transformer import Transformer
from upslope.stats.intervals import clopper_pearson, wilson
from upslope.tasks.task import Task
from upslope.tokens.tokenizer import train_bpe

V = 37


@pytest.fixture(scope="module")
def model() -> Transformer:
    return initialise(Transformer(dense(32, 2, 2, 2, 16, 48, context=64, vocab=V, init=Normal(std=0.3))), 0).eval()


def docs(count: int, longest: int) -> list[np.ndarray]:
    g = rng(1, "docs")
    return [g.integers(0, V, n) for n in [1, 2, *g.integers(3, longest, count - 2)]]


def test_nats_equal_one_document_at_a_time(model: Transformer) -> None:
    texts = docs(9, 40)
    packed = document_nats(model, texts, context=64, tokens=100)
    for doc, nats in zip(texts, packed, strict=True):
        ids = torch.from_numpy(doc)
        with torch.no_grad():
            logp = torch.log_softmax(model.logits(model(ids)).double(), dim=-1).numpy()
        expected = [math.log(V)] + [-logp[t - 1, doc[t]] for t in range(1, len(doc))]
        np.testing.assert_allclose(nats, expected, atol=2e-5)


def test_nats_do_not_depend_on_packing(model: Transformer) -> None:
    texts = docs(7, 150)
    one, many = (document_nats(model, texts, context=32, overlap=8, tokens=n) for n in (1, 5000))
    for a, b in zip(one, many, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)


@pytest.mark.parametrize(("context", "overlap"), [(8, 1), (8, 7), (16, 5)])
def test_windows_score_each_token_once_with_enough_before_it(context: int, overlap: int) -> None:
    texts = docs(12, 60)
    scored = [np.zeros(len(d), int) for d in texts]
    for w in windows(texts, context, overlap):
        assert len(w.ids) <= context
        np.testing.assert_array_equal(w.ids[-w.scored :], texts[w.doc][w.start : w.start + w.scored])
        before = len(w.ids) - w.scored
        assert before == (1 if w.start == 1 else overlap)
        scored[w.doc][w.start : w.start + w.scored] += 1
    assert all((s[1:] == 1).all() and s[0] == 0 for s in scored)
    with pytest.raises(ValueError, match="overlap"):
        list(windows(texts, 8, 8))


def test_a_model_that_gives_nan_is_refused(model: Transformer) -> None:
    broken = Transformer(model.config)
    broken.load_state_dict(model.state_dict())
    with torch.no_grad():
        broken.embed.weight[3] = math.nan
    with pytest.raises(FloatingPointError):
        document_nats(broken, [np.array([1, 3, 2])], context=16)


def test_bigram_is_a_distribution_and_follows_its_formula() -> None:
    g = rng(2, "rows")
    rows = [(g.integers(0, 5, 40), np.repeat([0, 1], 20)) for _ in range(60)]
    fitted = Bigram.fit(rows, 7)
    for v in range(7):
        total = sum(math.exp(-fitted.nats(np.array([v, w]))[1]) for w in range(7))
        assert total == pytest.approx(1.0, abs=1e-9)
    c: dict[tuple[int, int], int] = {}
    for ids, seg in rows:
        for t in range(1, 40):
            if seg[t] == seg[t - 1]:
                c[int(ids[t - 1]), int(ids[t])] = c.get((int(ids[t - 1]), int(ids[t])), 0) + 1
    n = sum(c.values())
    u, m, b = fitted.weights
    p = b * c[1, 2] / sum(x for (v, _), x in c.items() if v == 1) + m * sum(x for (_, w), x in c.items() if w == 2) / n + u / 7
    assert fitted.nats(np.array([1, 2])) == pytest.approx([math.log(7), -math.log(p)])


def test_bigram_weights_follow_the_data_and_repeats_count() -> None:
    g = rng(3, "chain")
    chain = [np.array([(s + t) % 11 for t in range(64)]) for s in g.integers(0, 11, 80)]
    noise = [g.integers(0, 11, 64) for _ in range(80)]
    seg = np.zeros(64, int)
    ordered, random = (Bigram.fit([(r, seg) for r in rows], 11) for rows in (chain, noise))
    assert ordered.weights[2] > 0.99
    assert random.weights[2] < 0.6
    assert ordered.nats(chain[0])[1:].mean() < 0.02
    assert random.nats(noise[0])[1:].mean() == pytest.approx(math.log(11), rel=0.05)
    twice = Bigram.fit([(np.array([0, 1]), seg[:2])] * 30 + [(np.array([0, 2]), seg[:2])] * 10, 5)
    assert twice.nats(np.array([0, 1]))[1] < twice.nats(np.array([0, 2]))[1] < twice.nats(np.array([0, 3]))[1] < math.inf
    with pytest.raises(ValueError, match="two rows"):
        Bigram.fit([(np.array([0, 1]), seg[:2])], 5)


def subject(**changes: str) -> Subject:
    whole = {k: k for k in ("weights", "numerics", "tokenizer", "template", "system", "sampling", "engine")}
    return Subject(**{**whole, **changes})


def rows_of(k: int, n: int, suite: str = "accuracy", metric: str = "correct") -> list[Row]:
    return [Row(suite, f"add/{i % 2}/{i:04d}", metric, float(i < k)) for i in range(n)]


def test_table_round_trip_is_exact_and_byte_identical(tmp_path: Path) -> None:
    rows = [*rows_of(3, 10), Row("bits", "web/1", "nats", 7.25, 11)]
    card = {"accuracy": Condition(subject(), {"kind": "x"}), "bits": Condition(subject().only("weights"), {})}
    a, b = Table.write(tmp_path / "a", rows, card), Table.write(tmp_path / "b", rows[::-1], dict(reversed(card.items())))
    assert a.rows() == sorted(rows)
    assert a.conditions() == card
    for name in ("rows.parquet", "conditions.json"):
        assert (a.path / name).read_bytes() == (b.path / name).read_bytes()
    frame = a.frame()
    assert frame["value"].dtype == np.float64
    assert sorted(frame) == sorted(("run", "step", "suite", "item", "metric", "value", "bytes"))
    assert a.intact()
    Table.write(tmp_path / "c", rows_of(4, 10), {"accuracy": card["accuracy"]})
    (a.path / "rows.parquet").write_bytes((tmp_path / "c" / "rows.parquet").read_bytes())
    assert not a.intact()


@pytest.mark.parametrize(
    ("rows", "why"),
    [
        ([Row("s", "a", "m", math.nan)], "not a number"),
        ([Row("s", "a", "m", math.inf)], "not a number"),
        ([Row("s", "a", "m", 1.0), Row("s", "a", "m", 2.0)], "twice"),
        ([Row("t", "a", "m", 1.0)], "no conditions"),
    ],
)
def test_tables_refuse_what_cannot_be_meant(tmp_path: Path, rows: list[Row], why: str) -> None:
    with pytest.raises(UsageError, match=why):
        Table.write(tmp_path, rows, {"s": Condition(Subject(), {})})


def test_estimates_choose_the_interval_by_the_kind_of_value(tmp_path: Path) -> None:
    rows = rows_of(7, 40)
    assert estimate(rows).interval == wilson(7, 40)
    assert estimate(rows, exact=True).interval == clopper_pearson(7, 40)
    nats = [Row("b", f"web/{i}", "nats", 2.0 * math.log(2) * size, size) for i, size in enumerate((10, 20, 31))]
    assert estimate(nats).value == pytest.approx(2.0)
    assert estimate(nats).unit == "bits per byte"
    assert estimate([Row("b", "x", "len", 3.0)]).interval is None
    with pytest.raises(ValueError, match="not finite"):
        estimate([Row("b", "x", "len", math.nan)])
    table = Table.write(tmp_path, rows, {"accuracy": Condition(Subject(), {})})
    assert [(e.group, e.k, e.n) for e in table.summary(2)] == [("add/0", 4, 20), ("add/1", 3, 20)]


def task(i: int, family: str, level: float, problem: int) -> Task:
    return Task(f"t{i:03d}", family, ({"role": "user", "content": str(i)},), (), {"answer": "1", "problem": [problem]}, level)


def test_selection_counts_a_problem_once_and_spreads_over_cells() -> None:
    tasks = [task(i, "add", 1 + i % 2, i // 3) for i in range(60)] + [task(100 + i, "sub", 1, i) for i in range(3)]
    chosen = select(tasks, 9)
    assert len({(t.family, t.truth["problem"][0]) for t in chosen}) == 9  # type: ignore[index,call-overload]
    cells = [(t.family, t.level) for t in chosen]
    assert {c: cells.count(c) for c in cells} == {("add", 1): 3, ("add", 2): 3, ("sub", 1): 3}
    assert select(tasks[::-1], 9) == chosen
    assert len(select(tasks, 1000)) == 23


class Answering:
    """An engine that knows what to say: prompt ids → completion ids."""

    def __init__(self, says: dict[tuple[int, ...], list[int]]) -> None:
        self.says, self.waiting = says, []  # type: ignore[var-annotated]

    def submit(self, requests: Sequence[Request]) -> None:
        self.waiting += requests

    def step(self) -> list[Completion]:
        done, self.waiting = self.waiting[::-1], []
        none = np.zeros(0, np.float32)
        made = [np.array(self.says[tuple(r.ids)], np.int32) for r in done]
        return [Completion(r.id, ids, Stop.EOS, none, None, none.astype(np.int32)) for r, ids in zip(done, made, strict=True)]


@pytest.mark.parametrize("forced", [False, True])
def test_answers_are_graded_by_what_follows_the_thought(tmp_path: Path, forced: bool) -> None:
    renderer = ChatML(train_bpe(["what is 1 + 1? answer: 2"] * 3, 270, tmp_path))
    t = renderer.tokenizer
    tasks = [task(i, "add", 1, i) for i in range(5)]
    replies = {  # truth is "1": (after a forced <think>, or free) → score, thought
        0: ("hm\n</think>\n\n1" if forced else "1", 1.0),
        1: ("hm\n</think>\n\n2" if forced else "2", 0.0),
        2: ("1\n</think>\n\n" if forced else "", 0.0),
        3: ("1", 0.0 if forced else 1.0),
        4: ("a\n</think>\n\n 1 ", 1.0),
    }

    def ids(text: str) -> list[int]:
        head, mark, tail = text.partition("</think>")
        return [*t.encode(head), *([t.end_think] if mark else []), *t.encode(tail), t.im_end]

    prompts = [renderer.open(with_system(x.messages, "sys"), think=forced).ids.tolist() for x in tasks]
    says = {tuple(prompts[i]): ids(reply) for i, (reply, _) in replies.items()}
    found = list(answers(Answering(says), renderer, tasks, Sampling(max_new=9), system="sys", forced=forced, samples=2))  # type: ignore[arg-type]
    assert [(a.task.id, a.sample) for a in found] == [(x.id, s) for x in tasks for s in range(2)]
    assert [a.score for a in found[::2]] == [score for _, score in replies.values()]
    assert all(a.ended and a.tokens == len(ids(replies[i // 2][0])) for i, a in enumerate(found))


def test_system_prompts_are_joined_in_order() -> None:
    messages = [{"role": "system", "content": "b"}, {"role": "user", "content": "u"}]
    assert with_system(messages, "a", "") == [{"role": "system", "content": "a\nb"}, {"role": "user", "content": "u"}]
    assert with_system(messages[1:]) == messages[1:]


def test_every_part_of_the_object_changes_it(tmp_path: Path) -> None:
    def made(name: str, **files: str) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        base = {"model.safetensors": "w", "config.json": "{}", "tokenizer.json": "t", "tokenizer_config.json": '{"chat_template": "x"}'}
        for file, text in {**base, **files}.items():
            (folder / file).write_text(text)
        return folder

    base = Subject.of(made("base"), Deployment())
    assert not base.missing()
    variants = {
        "weights": Subject.of(made("w", **{"model.safetensors": "W"}), Deployment()),
        "numerics": Subject.of(made("n"), Deployment(numerics="bf16")),
        "tokenizer": Subject.of(made("t", **{"tokenizer.json": "T"}), Deployment()),
        "system": Subject.of(made("s"), Deployment(system="be kind")),
        "template": Subject.of(made("c", **{"tokenizer_config.json": '{"chat_template": "y"}'}), Deployment()),
        "sampling": Subject.of(made("q"), Deployment(temperature=1.0)),
        "engine": Subject.of(made("e"), Deployment(), "another"),
    }
    for name, other in variants.items():
        assert other.conflicts(base) == [name]
    assert Subject.of(made("a", **{"config.json": '{"rope_theta": 5}'}), Deployment()).conflicts(base) == ["weights"]
    assert Subject.of(made("same"), Deployment()) == base
    assert base.only("weights").conflicts(variants["system"]) == []
    (tmp_path / "base" / "tokenizer.json").unlink()
    with pytest.raises(UsageError, match=r"no tokenizer\.json"):
        Subject.of(tmp_path / "base", Deployment())
