"""Classifiers: features and gradients against plain Python and finite differences, metrics against brute force, cards against counts."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from tests.data.make import files_of
from upslope.chat.model import Chat, Reply, Scripted, Speaker, Stop
from upslope.config import Input, Source, UsageError
from upslope.data import shards
from upslope.data.annotators.classify import Classify
from upslope.data.artifacts import Corpus
from upslope.data.classify import heads, labelling, linear, metrics, train
from upslope.data.classify.artifact import Classifier, Model, buffers, ngram_settings
from upslope.data.classify.config import Embedding, Labelled, Labels, Ngrams, Rubric
from upslope.data.classify.heads import Head, Layout
from upslope.data.embedders.hashed import Hashed
from upslope.data.folding import table
from upslope.generate.speakers.endpoint import Endpoint
from upslope.machine.context import Context
from upslope.stages.annotate import Annotate
from upslope.stages.classifier import TrainClassifier
from upslope.stages.extract import Extract
from upslope.stages.ingest import Ingest
from upslope.stats.intervals import clopper_pearson, wilson

MASK = (1 << 64) - 1
SMALL = Ngrams(bits=12, dim=4, epochs=10, patience=3, lr=0.3)


def corpus(folder: Path, texts: Sequence[str], source: str = "s", **columns: Sequence[Any]) -> Corpus:
    """A corpus with columns of the text set by hand, in shards of 100."""
    rows = [
        {"url": f"{source}/{i}", "source": source, "date": "", "licence": "CC0", "provenance": "import", "text": t}
        | {k: v[i] for k, v in columns.items()}
        | shards.sizes(len(t.encode()), None)
        for i, t in enumerate(texts)
    ]
    files = []
    for start in range(0, len(rows), 100):
        files.append(folder / f"{source}-{start:05d}.parquet")
        shards.write(files[-1], shards.rows_to_table(rows[start : start + 100], shards.TEXT))
    return Corpus.create(folder, files, [])


def documents(n: int, topic: str, seed: int) -> list[str]:
    """Texts of common words and a few of a topic's own."""
    r = np.random.default_rng(seed)
    own = {"sea": "tide wave salt harbour gull", "sky": "cloud wind star comet moon", "ore": "iron vein shaft slag copper"}[topic].split()
    common = [f"w{i}" for i in range(60)]
    return [
        " ".join([*r.choice(common, r.integers(8, 30)), *r.choice(own, r.integers(1, 4)), f"n{i}{topic}"]) for i in range(n)
    ]  # fmt: skip


def run(folder: Path, form: Labels, inputs: dict[str, Corpus], seed: int = 0, **fields: Any) -> Classifier:
    fields = {"model": SMALL, "test": 0.3, "dev": 0.2, **fields}
    made = TrainClassifier(purpose="tests", form=form, **fields).run(Context.scratch(folder, seed=seed, **inputs))
    assert isinstance(made, Classifier)
    return made


@pytest.fixture(scope="module")
def topics(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Corpus]:
    folder = tmp_path_factory.mktemp("topics")
    made = {}
    for seed, name in enumerate(("sea", "sky", "ore")):
        texts = documents(170 - 20 * seed, name, seed)
        langs = ["en" if i % 3 else "de" for i in range(len(texts))]
        made[name] = corpus(folder / name, texts, name, lang=langs)
    return made


EXAMPLES = tuple(Labelled(corpus=Input(stage=n), label=n) for n in ("sea", "sky", "ore"))


# ── features ──────────────────────────────────────────────────────────────────────────────────────────────────────


def mix(x: int) -> int:
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK
    return x ^ (x >> 31)


def features_reference(text: str, grams: int, low: int, high: int, bits: int) -> list[int]:
    """ASCII texts only."""
    words = []
    for word in "".join(c.lower() if c.isalnum() else " " for c in text).split():
        h = 0xCBF29CE484222325
        for c in word:
            h = ((h ^ ord(c)) * 0x100000001B3) & MASK
        words.append(mix(h))
    out = []
    for i in range(len(words)):
        h = 0
        for word_hash in words[i : i + grams]:
            h = mix((h * 0x9E3779B97F4A7C15 + word_hash) & MASK)
            out.append(h >> (64 - bits))
    chars: list[str] = []
    for c in text.lower():
        blank = ord(c) <= 32
        if not (blank and chars and chars[-1] == " "):
            chars.append(" " if blank else c)
    for end in range(1, len(chars) + 1):
        h = 0x51ED270B
        for n in range(1, min(high, end) + 1):
            h = mix((h * 0x9E3779B97F4A7C15 + ord(chars[end - n])) & MASK)
            if n >= low:
                out.append(h >> (64 - bits))
    return out


@settings(deadline=None, max_examples=50)
@given(st.text(st.characters(max_codepoint=127), max_size=80), st.integers(1, 4), st.sampled_from([(0, 0), (1, 1), (2, 4), (3, 8)]))
def test_features_equal_brute_force(text: str, grams: int, runs: tuple[int, int]) -> None:
    data = np.frombuffer(text.encode(), np.uint8)
    found = linear.features(data, 0, data.size, table(), grams, *runs, 12)
    assert found.tolist() == features_reference(text, grams, *runs, 12)


def test_features_are_pinned() -> None:
    """If this fails, classifiers on disk mean something else: raise `Ngrams.features`."""
    data = np.frombuffer("Über die Flüsse — 川の流れ, rivers!".encode(), np.uint8)
    assert Ngrams.features == 1
    assert linear.features(data, 0, data.size, table(), 2, 0, 0, 16).tolist() == PINNED


PINNED = [4838, 19389, 8289, 16174, 8793, 14642, 61677, 64324, 14316, 17021, 21678, 30924, 27902, 49070, 15875]


def test_limit_cuts_between_characters() -> None:
    text = "aé" * 10
    for limit in range(1, 12):
        cut = text.encode()[:limit].decode("utf-8", "ignore")
        config = Ngrams(bits=12, chars=(1, 3), limit=limit)
        whole = linear.bags(*buffers([text])[:1], buffers([text])[1], *ngram_settings(config))
        short = linear.bags(*buffers([cut])[:1], buffers([cut])[1], *ngram_settings(config.replace(limit=0)))
        assert whole[1].tolist() == short[1].tolist()


ODD = ["", " ", "\0", "word", "x" * 100_000, "😀" * 50, "שלום עולם " * 20, "漢字かな交じり文" * 9, "a\n\n\nb\t", "—" * 30]


@settings(deadline=None, max_examples=30)
@given(st.lists(st.one_of(st.sampled_from(ODD), st.text(max_size=60)), max_size=12), st.integers(0, 12))
def test_scores_do_not_depend_on_the_batch(texts: list[str], cut: int) -> None:
    texts = [t.encode("utf-8", "replace").decode() for t in texts]
    model = random_model(Ngrams(bits=10, dim=5, chars=(2, 4)))
    whole = model(pa.array(texts, pa.string()))
    parts = [model(pa.array(texts, pa.string()).slice(0, cut)), model(pa.array(texts, pa.string()).slice(cut)), model(texts[::-1])]
    assert np.array_equal(whole, np.concatenate(parts[:2]))
    assert np.array_equal(whole, parts[2][::-1])
    assert np.isfinite(whole).all()


def random_model(config: Ngrams) -> Model:
    r = np.random.default_rng(3)
    layout = (Head("a", "one", ("x", "y", "z")), Head("b", "any", ("u", "v")), Head("c", "number", ("c",)))
    draw = lambda *shape: r.normal(size=shape).astype(np.float32)  # noqa: E731
    none = np.zeros((0, 0), np.float32)
    weights = heads.Weights(draw(config.dim, 6), draw(6), none, np.zeros(0, np.float32))
    return Model(config, layout, draw(1 << config.bits, config.dim), weights)


def test_means_are_the_average_of_rows_then_a_linear_map() -> None:
    model, text = random_model(Ngrams(bits=8, dim=4, grams=3)), "the quick brown fox the quick"
    rows = features_reference(text, 3, 0, 0, 8)
    eta = model.table[rows].astype(float).mean(axis=0) @ model.weights.matrix + model.weights.bias
    a = np.exp(eta[:3]) / np.exp(eta[:3]).sum()
    expected = [*a, *(1 / (1 + np.exp(-eta[3:5]))), eta[5]]
    assert model([text])[0] == pytest.approx(expected, rel=1e-5)
    data, offsets = buffers([text, "", "fox"])
    starts, ids, square = linear.bags(data, offsets, *ngram_settings(model.config))  # type: ignore[arg-type]
    pooled = linear.pool(starts, ids, model.table)
    assert np.array_equal(pooled, linear.pool_texts(data, offsets, *ngram_settings(model.config), model.table))  # type: ignore[arg-type]
    counts = np.unique(rows, return_counts=True)[1]
    assert square[0] == pytest.approx((counts**2).sum() / len(rows) ** 2)
    assert square[1] == 0


# ── gradients ─────────────────────────────────────────────────────────────────────────────────────────────────────


LAYOUT = Layout.of([Head("a", "one", ("x", "y", "z")), Head("b", "any", ("u", "v")), Head("c", "number", ("c",))])


def loss_reference(eta: np.ndarray, target: np.ndarray, weight: np.ndarray) -> float:
    """Of one row with the heads of LAYOUT, written out."""
    log_softmax = eta[:3] - math.log(sum(math.exp(e) for e in eta[:3]))
    sigmoid = 1 / (1 + np.exp(-eta[3:5]))
    binary = -sum(t * math.log(s) + (1 - t) * math.log(1 - s) for t, s in zip(target[3:5], sigmoid))
    return float(weight[0] * -(target[:3] @ log_softmax) + weight[1] * binary + weight[2] * 0.5 * (eta[5] - target[5]) ** 2)


def numeric(f: Callable[[], float], x: np.ndarray, step: float = 1e-5) -> np.ndarray:
    out = np.zeros_like(x)
    for i in np.ndindex(x.shape):
        keep = x[i]
        x[i] = keep + step
        up = f()
        x[i] = keep - step
        out[i] = (up - f()) / (2 * step)
        x[i] = keep
    return out


@pytest.mark.parametrize("dim", [4, 0])
def test_a_step_of_sgd_follows_the_gradient(dim: int) -> None:
    r = np.random.default_rng(dim)
    ids, starts = np.array([2, 5, 2, 7, 2], np.int32), np.array([0, 5])
    e, w, b = r.normal(size=(9, dim or 6)), r.normal(size=(dim, 6)), r.normal(size=6)
    target, weight = np.array([0.7, 0.3, 0, 1, 0, 2.5]), np.array([1.0, 0.5, 2.0])

    def loss() -> float:
        x = e[ids].mean(axis=0)
        return loss_reference((x @ w if dim else x) + b, target, weight)

    gradients = [numeric(loss, part) for part in (e, w, b)]
    moved = [np.asarray(part, np.float32) for part in (e, w, b)]
    lr = 1e-3
    square = np.array([(9 + 1 + 1) / 25], np.float32)
    linear.sgd(
        starts, ids, square, np.float32(target)[None], np.float32(weight)[None], LAYOUT.bounds, LAYOUT.kinds, np.array([0]), *moved,
        lr, 0, 1,
    )  # fmt: skip
    for before, after, gradient, scale in zip((e, w, b), moved, gradients, (1 / square[0], 1, 1)):
        assert (before - after) / lr == pytest.approx(gradient * scale, rel=2e-2, abs=2e-3)


def test_the_rate_falls_linearly_and_weights_of_zero_teach_nothing() -> None:
    def moved(done: int, weight: float) -> float:
        bias = np.zeros(1, np.float32)
        one = np.ones((1, 1), np.float32)
        linear.sgd(
            np.array([0, 1]), np.zeros(1, np.int32), one[0], one, weight * one, np.array([0, 1]), np.array([linear.NUMBER]), np.array([0]),
            np.zeros((1, 1), np.float32), np.zeros((0, 1), np.float32), bias, 0.5, done, 10,
        )  # fmt: skip
        return float(bias[0])

    assert [moved(d, 1.0) for d in (0, 5, 10)] == pytest.approx([0.5, 0.25, 0.0])
    assert moved(0, 0.0) == 0


@pytest.mark.parametrize("hidden", [0, 3])
def test_gradient_of_the_objective_equals_finite_differences(hidden: int) -> None:
    r = np.random.default_rng(hidden)
    x, flat = r.normal(size=(7, 4)), r.normal(size=heads.unpacked_size(4, 6, hidden))
    target, weight = np.abs(r.normal(size=(7, 6))), np.abs(r.normal(size=(7, 3)))
    target[:, :3] /= target[:, :3].sum(axis=1, keepdims=True)
    target[:, 3:5] = target[:, 3:5] > 0.5
    value, gradient = heads.objective(flat, x, target, weight, LAYOUT, hidden, 0.1)
    assert gradient == pytest.approx(numeric(lambda: heads.objective(flat, x, target, weight, LAYOUT, hidden, 0.1)[0], flat), abs=1e-6)
    matrix, bias, inner, inner_bias = heads.unpack(flat, 4, 6, hidden)
    z = np.maximum(0, x @ inner + inner_bias) if hidden else x
    rows = [loss_reference(zi @ matrix + bias, t, w) for zi, t, w in zip(z, target, weight)]
    assert value == pytest.approx(np.mean(rows) + 0.05 * ((matrix**2).sum() + (inner**2).sum()))


def test_ridge_equals_least_squares_with_extra_rows() -> None:
    r = np.random.default_rng(0)
    x, y, w = r.normal(size=(40, 5)), r.normal(size=(40, 1)), r.random(40)
    l2 = 0.3
    root = np.sqrt(w)[:, None]
    design = np.vstack([root * np.hstack([x, np.ones((40, 1))]), np.sqrt(l2 * 40) * np.eye(6)[:5]])
    expected = np.linalg.lstsq(design, np.vstack([root * y, np.zeros((5, 1))]), rcond=None)[0]
    found = heads.ridge(x, y, w, l2)
    assert np.vstack([found.matrix, found.bias[None]]) == pytest.approx(expected, rel=1e-4)


def test_logistic_heads_reach_the_frequencies_of_a_saturated_model() -> None:
    """One indicator a group: the maximum-likelihood probabilities are the groups' shares."""
    group = np.repeat([0, 1, 2], 20)
    truth = np.array([i % 4 == 0 if g == 0 else i % 2 == 0 if g == 1 else i % 10 < 7 for g, i in zip(group, [*range(20)] * 3)])
    part = heads.Split(np.eye(3, dtype=np.float32)[group], np.stack([~truth, truth], 1).astype(np.float32), np.ones((60, 1), np.float32))
    layout = Layout.of([Head("h", "one", ("no", "yes"))])
    found = heads.fit(part, part, layout, hidden=0, l2=1e-9, iterations=500, patience=1, rng=np.random.default_rng(0))
    assert found(np.eye(3, dtype=np.float32), layout)[:, 1] == pytest.approx([0.25, 0.5, 0.7], abs=2e-3)


def test_a_hidden_layer_learns_what_a_line_cannot() -> None:
    r = np.random.default_rng(0)
    x = r.uniform(-1, 1, (400, 2)).astype(np.float32)
    truth = x[:, 0] * x[:, 1] > 0
    part = heads.Split(x, truth[:, None].astype(np.float32), np.ones((400, 1), np.float32))
    layout = Layout.of([Head("h", "any", ("same sign",))])
    right = {}
    for hidden in (0, 16):
        found = heads.fit(part, part, layout, hidden=hidden, l2=1e-5, iterations=300, patience=3, rng=np.random.default_rng(1))
        right[hidden] = float(((found(x, layout)[:, 0] > 0.5) == truth).mean())
    assert right[0] < 0.65
    assert right[16] > 0.95


# ── metrics ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_metrics_equal_brute_force() -> None:
    r = np.random.default_rng(0)
    score, truth, weight = r.integers(0, 8, 60), r.random(60) < 0.4, r.integers(0, 3, 60)
    pairs = [
        (weight[i] * weight[j], (score[i] > score[j]) + 0.5 * (score[i] == score[j]))
        for i in range(60) if truth[i] for j in range(60) if not truth[j]
    ]  # fmt: skip
    assert metrics.auc(metrics.ranks(score), truth, weight) == pytest.approx(sum(w * v for w, v in pairs) / sum(w for w, _ in pairs))
    assert metrics.auc(metrics.ranks(score), np.ones(60)) is None
    p = r.random(60)
    bins = [[i for i in range(60) if min(14, int(p[i] * 15)) == k] for k in range(15)]
    assert metrics.ece(p, truth) == pytest.approx(sum(abs(sum(p[i] - truth[i] for i in b)) for b in bins) / 60)
    assert metrics.ece(np.ones(4), [1, 1, 1, 1]) == 0
    # Cohen's example of two raters: observed 0.7, by chance 0.5
    assert metrics.kappa(np.array([[20.0, 5], [10, 15]])) == pytest.approx((0.7 - 0.5) / (1 - 0.5))
    assert metrics.kappa(np.array([[9.0, 0], [0, 0]])) is None
    assert metrics.f1s(np.array([[8.0, 2, 0], [1, 4, 0], [0, 0, 0]]))[:2] == pytest.approx([16 / 19, 8 / 11])
    assert np.isnan(metrics.f1s(np.zeros((3, 3)))).all()


def test_measures_of_one_class_count_what_is_there() -> None:
    head = Head("label", "one", ("a", "b"))
    truth = np.array([0] * 6 + [1] * 4)
    p = np.array([0.1, 0.2, 0.3, 0.4, 0.6, 0.7, 0.9, 0.8, 0.55, 0.2], np.float32)
    mean, target = np.stack([1 - p, p], 1), np.eye(2, dtype=np.float32)[truth]
    found = metrics.measure(head, mean, target, p, "b", wilson)
    assert found["confusion"]["truth_by_guess"] == [[4, 2], [1, 3]]
    assert found["accuracy"]["value"] == 0.7
    assert (found["accuracy"]["low"], found["accuracy"]["high"]) == wilson(7, 10)[1:]
    assert found["classes"]["b"]["precision"]["value"] == 0.6
    assert found["classes"]["b"]["recall"]["value"] == 0.75
    assert found["auc"]["value"] == pytest.approx((6 + 6 + 4 + 1.5) / 24)
    assert found["auc"]["low"] <= found["auc"]["value"] <= found["auc"]["high"]
    row = next(r for r in found["thresholds"] if r["threshold"] == pytest.approx(0.7))
    assert (row["kept"], row["precision"]["value"], row["recall"]["value"]) == (0.3, pytest.approx(2 / 3), 0.5)
    assert found["thresholds"][-1]["recall"]["value"] == 1


def test_measures_of_numbers_and_of_several_labels() -> None:
    guess, truth = np.array([0.2, 1.4, 2.6, 3.0, 4.9]), np.array([0.0, 1, 2, 3, 5])
    found = metrics.measure(Head("v", "number", ("v",)), guess[:, None], truth[:, None], guess, "", wilson)
    assert found["accuracy"]["value"] == 0.8
    assert found["mean_absolute_error"]["value"] == pytest.approx(np.abs(guess - truth).mean())
    assert found["r2"]["value"] == pytest.approx(1 - ((guess - truth) ** 2).sum() / ((truth - truth.mean()) ** 2).sum())
    assert found["spearman"]["value"] == pytest.approx(1)
    assert found["levels"]["3"]["precision"]["value"] == pytest.approx(2 / 3)
    assert found["levels"]["3"]["recall"]["value"] == 1
    mean, target = np.array([[0.9, 0.2], [0.6, 0.7], [0.1, 0.1]], np.float32), np.array([[1, 0], [0, 1], [0, 0]], np.float32)
    several = metrics.measure(Head("l", "any", ("p", "q")), mean, target, mean.max(axis=1), "", wilson)
    assert several["accuracy"]["value"] == pytest.approx(2 / 3)
    assert several["micro_f1"]["value"] == pytest.approx(2 * 2 / (3 + 2))
    assert several["classes"]["p"]["precision"]["value"] == 0.5


# ── examples ──────────────────────────────────────────────────────────────────────────────────────────────────────


def example(text: str, label: Any) -> train.Example:
    return train.Example(text, label, dict.fromkeys(train.META, ""), train.text_hash(text))


def test_copies_count_once_and_contradictions_not_at_all() -> None:
    rows = [example(t, label) for t, label in (("a", "x"), ("b", "x"), ("a", "x"), ("b", "y"), ("c", "y"))]
    found = train.Examples.of(rows, 0.1, 0.2)
    assert [r.text for r in found.rows] == ["a", "c"]
    assert (found.repeats, found.conflicts) == (1, 2)


def test_the_split_is_the_texts_own() -> None:
    rows = [example(f"text {i}", "x") for i in range(2000)]
    whole, part = train.Examples.of(rows, 0.1, 0.2), train.Examples.of(rows[500:600][::-1], 0.1, 0.2)
    at = {r.text: s for r, s in zip(whole.rows, whole.split)}
    assert [at[r.text] for r in part.rows] == part.split.tolist()
    shares = np.bincount(whole.split) / 2000
    assert shares == pytest.approx([0.7, 0.1, 0.2], abs=0.03)


def test_a_limit_takes_the_same_documents_whatever_else_there_is(tmp_path: Path) -> None:
    texts = [f"text {i}" for i in range(300)]
    few = {t for t, *_ in train.documents(corpus(tmp_path / "a", texts[:200]), limit=20)}
    more = {t for t, *_ in train.documents(corpus(tmp_path / "b", texts), limit=30)}
    assert len(few) == 20
    assert len(few & more) >= 15
    hashes = [train.text_hash(t) for t in few]
    assert max(hashes) > 0.5  # not the split's hash, which would put all of them into the test split


def test_balance_weighs_classes_alike() -> None:
    rows = [example(str(i), "a" if i < 9 else "b") for i in range(12)]
    weight = train.targets(rows, train.head_of(rows, "one"), balance=True)[1][:, 0]
    assert weight[:9].sum() == pytest.approx(6)
    assert weight[9:].sum() == pytest.approx(6)


@pytest.mark.parametrize(
    ("rows", "target", "positive", "says"),
    [
        ([example("a", "x")], "one", "", "1 class "),
        ([example("a", "x"), example("b", "y")], "one", "z", "no example has that label"),
        ([example("a", 1.0), example("b", 1.0)], "number", "", "the same number"),
        ([], "one", "", "0 classes"),
    ],
)
def test_examples_that_teach_nothing_are_refused(rows: list[train.Example], target: str, positive: str, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        train.head_of(rows, target, positive)


# ── a teacher ─────────────────────────────────────────────────────────────────────────────────────────────────────


LEVELS = Rubric(question="How useful for learning, 0 to 5?", scale=(0, 5))
TOPICS = Rubric(question="Which topic?", answers=("sea", "sky"))
SEVERAL = Rubric(question="Which topics?", answers=("sea", "sky", "ore"), several=True, abstain=False)


@pytest.mark.parametrize(
    ("rubric", "reply", "label"),
    [
        (LEVELS, "It explains.\nanswer: 4", 4.0),
        (LEVELS, "answer: none", None),
        (TOPICS, "Answer: sea\n", "sea"),
        (SEVERAL, "answer: sky, ore", ("ore", "sky")),
    ],
)
def test_replies_in_form_are_read(rubric: Rubric, reply: str, label: Any) -> None:
    assert labelling.parse(reply, rubric) == label


@pytest.mark.parametrize(
    ("rubric", "reply", "why"),
    [
        (LEVELS, "", "0 answer lines"),
        (LEVELS, "4", "0 answer lines"),
        (LEVELS, "answer: 4\nanswer: 5", "2 answer lines"),
        (LEVELS, "answer: 4\nbecause it explains", "not the last line"),
        (LEVELS, "answer: 6", "not a whole number"),
        (LEVELS, "answer: 4.5", "not a whole number"),
        (LEVELS, "answer: ٣", "not a whole number"),
        (TOPICS, "answer: Sea", "not an answer that was offered"),
        (TOPICS, "answer: sea, sky", "not an answer that was offered"),
        (SEVERAL, "answer: sky, sky", "twice"),
        (SEVERAL, "answer: none", "not offered"),
    ],
)
def test_replies_out_of_form_are_rejected(rubric: Rubric, reply: str, why: str) -> None:
    with pytest.raises(labelling.Unreadable, match=why):
        labelling.parse(reply, rubric)


@settings(deadline=None, max_examples=100)
@given(st.text(max_size=40))
def test_no_reply_gives_a_label_that_was_not_offered(reply: str) -> None:
    for rubric, known in ((LEVELS, {None, *map(float, range(6))}), (TOPICS, {None, "sea", "sky"})):
        for text in (reply, f"answer: {reply}"):
            with contextlib.suppress(labelling.Unreadable):
                assert labelling.parse(text, rubric) in known


def test_a_reply_that_was_cut_off_gives_no_label() -> None:
    class Cut:
        def chat(self, calls: Sequence[Chat]) -> list[Reply]:
            return [r._replace(stop=Stop.LENGTH) for r in Scripted(["answer: sea"]).chat(calls)]

    found = labelling.label(["a", "b"], TOPICS, Cut())
    assert found.labels == [None, None]
    assert [r.record for r in found.rejects] == ["0", "1"]
    assert "cut off" in found.rejects[0].why
    some = labelling.label(["a", "b", "c"], TOPICS, Scripted(["answer: sea", "answer: none", "no"]))
    assert (some.labels, len(some.rejects), some.abstained) == (["sea", None, None], 1, 1)


def test_no_text_is_asked_about_twice(tmp_path: Path) -> None:
    calls = []

    def reply(chat: Chat) -> str:
        calls.append(chat)
        return "answer: sea"

    texts = [f"text {i}" for i in range(labelling.CHUNK + 5)]

    def ask(stop_at: int) -> labelling.Labelling:
        def between(done: int) -> None:
            if done == stop_at:
                raise KeyboardInterrupt

        read = lambda r: labelling.parse(r, TOPICS)  # noqa: E731
        return labelling.asked(texts, lambda t: labelling.prompt(t, TOPICS), read, Scripted(reply), folder=tmp_path, between=between)

    with pytest.raises(KeyboardInterrupt):
        ask(labelling.CHUNK)
    assert ask(-1).labels == ["sea"] * len(texts)
    assert len(calls) == len(texts)


class Rule(Speaker):
    """A teacher that follows a rule: the topic whose word is in the text."""

    kind = "tests.data.test_classify:Rule"
    lazy: bool = False

    def open(self) -> Scripted:
        def reply(chat: Chat) -> str:
            text = str(chat.messages[-1].content).split("<<<")[1].split(">>>")[0]
            own = {"sea": "tide wave salt harbour gull", "sky": "cloud wind star comet moon"}
            found = [t for t, words in own.items() if set(words.split()) & set(text.split())]
            return f"answer: {found[0]}" if found else "answer: none" if not self.lazy else "whatever"

        return Scripted(reply)


# ── the stage ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_classifier_of_topics_and_its_card(tmp_path: Path, topics: dict[str, Corpus]) -> None:
    found = run(tmp_path / "a", Labels(examples=EXAMPLES), topics)
    card = json.loads((found.path / "card.json").read_text())
    assert card["metrics"]["accuracy"]["value"] > 0.9
    assert card["metrics"]["majority_class"] < 0.5
    split = card["data"]["splits"]
    assert sum(split.values()) == 450 == card["data"]["examples"]
    assert card["data"]["labels"]["test"].keys() == {"sea", "sky", "ore"}
    assert card["data"]["licences"] == {"CC0": 450}
    assert sum(row["n"] for row in card["by_language"].values()) == split["test"]
    assert set(card["by_language"]) == {"de", "en"}
    assert np.sum(card["metrics"]["confusion"]["truth_by_guess"]) == split["test"]
    # the card's numbers again, from the artifact alone
    table = shards.read(found.path / "labels.parquet").filter(pa.compute.field("split") == "test").to_pylist()
    texts = {f"{n}/{i}": t for n, c in topics.items() for i, t in enumerate(c.texts())}
    again = Classifier.load(found.path).read([texts[row["url"]] for row in table])
    right = [a == row["label"] for a, row in zip(again.label, table)]
    assert np.mean(right) == pytest.approx(card["metrics"]["accuracy"]["value"])
    markdown = (found.path / "card.md").read_text()
    assert f"| accuracy | {np.mean(right):.3f} [" in markdown
    assert "weak evidence" in markdown or split["test"] >= 30


def test_the_same_bits_for_the_same_config_and_others_for_another_seed(tmp_path: Path, topics: dict[str, Corpus]) -> None:
    form = Labels(examples=EXAMPLES)
    a, b = (run(tmp_path / n, form, topics) for n in "ab")
    assert files_of(a.path) == files_of(b.path)
    other = run(tmp_path / "c", form, topics, seed=1)
    assert files_of(a.path)["weights.safetensors"] != files_of(other.path)["weights.safetensors"]


HASHED = Embedding(embedder=Hashed(dim=32, spread=4), iterations=30)
KNOBS: list[dict[str, Any]] = [
    {"model": SMALL.replace(grams=1)}, {"model": SMALL.replace(chars=(2, 3))}, {"model": SMALL.replace(bits=11)},
    {"model": SMALL.replace(dim=0)}, {"model": SMALL.replace(lr=0.1)}, {"model": SMALL.replace(epochs=2)},
    {"model": SMALL.replace(limit=40)},
    {"test": 0.2}, {"dev": 0.15}, {"model": HASHED}, {"model": HASHED.replace(hidden=4)}, {"model": HASHED.replace(l2=1e-2)},
    {"model": HASHED.replace(iterations=3)}, {"balance": True},
    {"examples": (*EXAMPLES[:2], EXAMPLES[2].replace(limit=60))}, {"examples": (*EXAMPLES[:2], EXAMPLES[2].replace(label="tin"))},
]  # fmt: skip


def test_every_knob_turns_something(tmp_path: Path, topics: dict[str, Corpus]) -> None:
    seen = {}
    for i, change in enumerate([{}, *KNOBS]):
        stage = {k: v for k, v in change.items() if k in ("model", "test", "dev")}
        form = Labels(**{"examples": EXAMPLES, **{k: v for k, v in change.items() if k not in stage}})
        seen[str(change)] = files_of(run(tmp_path / str(i), form, topics, **stage).path)["weights.safetensors"]
    assert len(set(seen.values())) == len(seen), [k for k, v in seen.items() if list(seen.values()).count(v) > 1]


def test_patience_stops_and_keeps_the_best_epoch() -> None:
    r = np.random.default_rng(0)
    texts = [" ".join(f"w{w}" for w in r.integers(0, 40, 20)) for _ in range(120)]
    target = np.eye(2, dtype=np.float32)[r.integers(0, 2, 120)]  # nothing to learn
    parts = [train.Labels(texts[a:b], target[a:b], np.ones((b - a, 1), np.float32)) for a, b in ((0, 80), (80, 120))]
    head = (Head("h", "one", ("a", "b")),)
    logs = [train.train(SMALL.replace(epochs=30, patience=p, lr=0.5), head, *parts, seed=0)[1] for p in (1, 4)]
    assert logs[0]["epochs"] < logs[1]["epochs"] < 30
    for log, patience in zip(logs, (1, 4)):
        assert log["epochs"] == log["best_epoch"] + patience


def test_patience_of_a_hidden_layer_keeps_the_best_weights() -> None:
    r = np.random.default_rng(0)
    layout = Layout.of([Head("h", "any", ("yes",))])

    def split(n: int) -> heads.Split:
        return heads.Split(
            r.normal(size=(n, 8)).astype(np.float32), (r.random((n, 1)) < 0.5).astype(np.float32), np.ones((n, 1), np.float32)
        )

    learn, dev = split(40), split(200)  # nothing to learn: the longer, the worse on dev
    fits = [heads.fit(learn, dev, layout, hidden=8, l2=0.0, iterations=300, patience=p, rng=np.random.default_rng(0)) for p in (1, 1, 30)]
    assert all(np.array_equal(a, b) for a, b in zip(fits[0], fits[1]))
    losses = [linear.loss(f(dev.x, layout), dev.target, dev.weight, layout.bounds, layout.kinds) for f in fits]
    assert losses[2] <= losses[0]
    free = heads.fit(learn, heads.Split(dev.x[:0], dev.target[:0], dev.weight[:0]), layout, hidden=8, l2=0.0, iterations=300, patience=1,
                     rng=np.random.default_rng(0))  # fmt: skip
    assert losses[0] < linear.loss(free(dev.x, layout), dev.target, dev.weight, layout.bounds, layout.kinds)


def test_the_teacher_sees_the_question_and_as_much_of_the_text_as_is_shown() -> None:
    asked = labelling.prompt("abcdefgh", LEVELS.replace(shown=3))
    assert "<<<\nabc\n>>>" in asked
    assert asked.startswith("How useful for learning")
    assert "from 0 to 5" in asked
    assert "none" in asked
    assert "none" not in labelling.prompt("a", LEVELS.replace(abstain=False))
    assert "sea, sky, ore" in labelling.prompt("a", SEVERAL)


def test_a_rate_that_is_too_high_is_an_error_not_a_classifier(tmp_path: Path, topics: dict[str, Corpus]) -> None:
    with pytest.raises(UsageError, match="no longer finite"):
        run(tmp_path, Labels(examples=EXAMPLES), topics, model=SMALL.replace(lr=1e30))


def test_labels_from_a_column_and_from_sources(tmp_path: Path, topics: dict[str, Corpus]) -> None:
    both = corpus(tmp_path / "c", documents(80, "sea", 5) + documents(80, "sky", 6), "x", lang=["sea"] * 80 + ["sky"] * 80)
    found = run(tmp_path / "a", Labels(examples=(Labelled(corpus=Input(stage="c"), column="lang"),)), {"c": both})
    assert found.model.heads[0].classes == ("sea", "sky")
    assert found.card["metrics"]["accuracy"]["value"] > 0.85
    of = (EXAMPLES[0], EXAMPLES[1].replace(sources=("sky",)), EXAMPLES[2].replace(sources=("sky",)))
    none = run(tmp_path / "b", Labels(examples=of), topics)
    assert none.model.heads[0].classes == ("sea", "sky")


def test_numbers_and_levels(tmp_path: Path) -> None:
    words = [i % 6 for i in range(400)]
    texts = [f"doc {i} " + "lesson " * w + "filler " * (6 - w) for i, w in enumerate(words)]
    c = corpus(tmp_path / "c", texts, "x", bytes=[0] * 400)
    rows = [{"bytes": w} for w in words]
    shard = [f.path for f in c.files()]
    for n, file in enumerate(shard):  # `bytes` is an integer column of the text, which serves as a label here
        t = shards.read(file)
        part = rows[100 * n : 100 * n + 100]
        shards.write(file, t.set_column(t.schema.get_field_index("bytes"), "bytes", pa.array([r["bytes"] for r in part], pa.int32())))
    c = Corpus.create(tmp_path / "c", shard, [])
    form = Labels(examples=(Labelled(corpus=Input(stage="c"), column="bytes"),), target="number", buckets=3)
    for model in (SMALL.replace(epochs=20, lr=0.1), Embedding(embedder=Hashed(dim=64))):
        found = run(tmp_path / model.kind, form, {"c": c}, model=model)
        measured = found.card["metrics"]
        assert measured["spearman"]["value"] > 0.9
        assert measured["levels"]["3"]["f1"] > 0.85
        read = found.read([texts[0], texts[5], "", "lesson " * 400])
        assert read.label[2] is read.score[2] is read.bucket[2] is None
        assert (read.bucket[0], read.bucket[1]) == (0, 2)
        assert read.label[3] == "5"  # held to the range that was seen


def test_several_labels(tmp_path: Path) -> None:
    parts: list[tuple[str, ...]] = [("sea",), ("sky",), ("sea", "sky"), ("ore",), ()]
    texts = [" ".join(documents(1, t, i * 10 + k)[0] for k, t in enumerate(parts[i % 5])) or f"w1 w{i}" for i in range(400)]
    c = corpus(tmp_path / "c", texts, "x", lang=[",".join(parts[i % 5]) for i in range(400)])
    form = Labels(examples=(Labelled(corpus=Input(stage="c"), column="lang"),), target="any", positive="sky")
    found = run(tmp_path / "a", form, {"c": c}, model=SMALL.replace(epochs=12, bits=14))
    assert found.card["metrics"]["micro_f1"]["value"] > 0.9
    assert found.read([texts[2], texts[4]]).label == ["sea,sky", None]
    assert found.read(["w1 w2"]).score[0] == pytest.approx(float(found.model(["w1 w2"])[0, 2]))


def test_labels_from_a_teacher(tmp_path: Path, topics: dict[str, Corpus]) -> None:
    of = tuple(Labelled(corpus=Input(stage=n), rubric=TOPICS) for n in topics)
    found = run(tmp_path / "a", Labels(examples=of, teacher=Rule()), topics)
    teacher = found.card["data"]["teacher"]
    assert (teacher["asked"], teacher["labelled"], teacher["abstained"], teacher["unreadable"]) == (450, 320, 130, 0)
    assert found.card["metrics"]["accuracy"]["value"] > 0.9
    lazy = run(tmp_path / "b", Labels(examples=of, teacher=Rule(lazy=True)), topics).card["data"]["teacher"]
    assert (lazy["abstained"], lazy["unreadable"], lazy["why"]) == (0, 130, {"0 answer lines": 130})


def test_what_does_not_fit_together_is_refused() -> None:
    c = Input(stage="c")
    with pytest.raises(ValidationError, match="needs a teacher"):
        Labels(examples=(Labelled(corpus=c, rubric=TOPICS),))
    with pytest.raises(ValidationError, match="one of label, column and rubric"):
        Labelled(corpus=c, label="a", column="b")
    with pytest.raises(ValidationError, match="not a label"):
        Labels(examples=(Labelled(corpus=c, label="a"),), target="number")
    with pytest.raises(ValidationError, match="goes with the target number"):
        Labels(examples=(Labelled(corpus=c, rubric=LEVELS),), teacher=Rule())
    with pytest.raises(ValidationError, match="several"):
        Labels(examples=(Labelled(corpus=c, rubric=SEVERAL),), teacher=Rule())
    with pytest.raises(ValidationError, match="at temperature 0"):
        Labels(examples=(Labelled(corpus=c, rubric=TOPICS),), teacher=Endpoint(url="http://x/v1", model="m", temperature=0.5))
    with pytest.raises(ValidationError, match="answers or a scale"):
        Rubric(question="?")
    with pytest.raises(ValidationError, match="nothing is left"):
        TrainClassifier(purpose="x", form=Labels(examples=EXAMPLES), test=0.5, dev=0.5)


# ── the annotator ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_buckets_are_equally_full_on_what_they_were_cut_on(tmp_path: Path, topics: dict[str, Corpus]) -> None:
    form = Labels(examples=EXAMPLES, positive="sea", buckets=5, over=(Input(stage="sky"), Input(stage="sea")))
    found = run(tmp_path / "a", form, topics)
    context = Context.scratch(tmp_path / "b", text=topics["sea"], quality=found)
    view = Annotate(corpus=Input(stage="text"), steps=(Classify(classifier=Input(stage="quality"), name="q"),)).run(context)
    assert isinstance(view, Corpus)
    rows = [r for b in view.batches(("q.label", "q.score", "q.bucket", "text")) for r in b.to_pylist()]
    both = [*topics["sky"].texts(), *topics["sea"].texts()]
    counts = np.bincount(np.array(found.read(both).bucket, int), minlength=5)
    assert np.abs(counts - 64).max() <= 1
    assert [r["q.bucket"] for r in rows] == found.read([r["text"] for r in rows]).bucket
    assert np.mean([r["q.label"] == "sea" for r in rows]) > 0.9
    order = sorted(rows, key=lambda r: r["q.score"])
    assert [r["q.bucket"] for r in order] == sorted(r["q.bucket"] for r in rows)


def test_the_annotator_takes_a_folder_too_and_gives_null_for_nothing(tmp_path: Path, topics: dict[str, Corpus]) -> None:
    found = run(tmp_path / "a", Labels(examples=EXAMPLES), topics)
    step = Classify(classifier=Source(uri=str(found.path))).bind(Context.scratch(tmp_path / "b"))
    batch = shards.rows_to_batch([{"text": t} for t in ["gull tide", "", "—", "star"]], shards.TEXT)
    rows = step(batch).to_pylist()
    assert [r["label"] for r in rows] == ["sea", None, None, "sky"]
    assert all(r["bucket"] is None for r in rows)
    parts = [step(batch.slice(i, 1)).to_pylist()[0] for i in range(4)]
    assert parts == rows


def test_files_that_were_changed_or_are_of_another_version_are_refused(tmp_path: Path, topics: dict[str, Corpus]) -> None:
    found = run(tmp_path / "a", Labels(examples=EXAMPLES), topics)
    context = Context.scratch(tmp_path / "b")
    step = Classify(classifier=Source(uri=str(found.path)))
    file = found.path / "classifier.json"
    body = json.loads(file.read_text())
    batch = shards.rows_to_batch([{"text": "gull"}], shards.TEXT)
    bound = step.bind(context)
    for change, says in (({"format": 0}, "format"), ({"form": "aitext"}, "form 'aitext'")):
        file.write_text(json.dumps({**body, **change}))
        with pytest.raises(UsageError, match=says):
            step.bind(context)
    with pytest.raises(UsageError, match="has changed"):
        bound(batch)
    file.write_text(json.dumps({**body, "features": 99}))
    with pytest.raises(UsageError, match="version 99"):
        step.bind(context)(batch)
    file.write_text(json.dumps(body))
    weights = found.path / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + bytes([weights.read_bytes()[-1] ^ 1]))
    with pytest.raises(UsageError, match="missing or has changed"):
        Classifier(found.path).arrays  # noqa: B018
    with pytest.raises(UsageError, match="no classifier"):
        step.replace(classifier=Source(uri=str(tmp_path))).bind(context)


def test_exact_intervals_are_those_of_stats() -> None:
    assert metrics.share(0, 100, clopper_pearson)["high"] == pytest.approx(1 - 0.025 ** (1 / 100))


@pytest.mark.slow
def test_twenty_thousand_documents_take_seconds_and_scoring_is_fast() -> None:
    import time

    texts = documents(10_000, "sea", 1) + documents(10_000, "sky", 2)
    target = np.eye(2, dtype=np.float32)[np.repeat([0, 1], 10_000)]
    learn = train.Labels(texts, target, np.ones((20_000, 1), np.float32))
    head = (Head("h", "one", ("sea", "sky")),)
    model, _ = train.train(Ngrams(epochs=1), head, learn, learn, 0)
    start = time.perf_counter()
    model, _ = train.train(Ngrams(), head, learn, learn, 0)
    assert time.perf_counter() - start < 30
    long = pa.array([" ".join(texts[i : i + 14])[:2000] for i in range(0, 14_000, 14)])
    start = time.perf_counter()
    model(long)
    assert len(long) / (time.perf_counter() - start) > 5000


@pytest.mark.slow
def test_manuals_of_the_crawl_are_told_apart(tmp_path: Path) -> None:
    pages = Ingest(sources=(Source(uri="package:crawl.warc.gz"),)).run(Context.scratch(tmp_path / "p"))
    text = Extract(pages=Input(stage="p")).run(Context.scratch(tmp_path / "t", p=pages))
    assert isinstance(text, Corpus)
    form = Labels(examples=(Labelled(corpus=Input(stage="t"), column="source"),))
    for model in (Ngrams(), Ngrams(dim=0, lr=1.0), Embedding(embedder=Hashed())):
        found = run(tmp_path / f"{model.kind}-{getattr(model, 'dim', '')}", form, {"t": text}, model=model, test=0.2, dev=0.1)
        measured = found.card["metrics"]
        print({k: round(measured[k]["value"], 3) for k in ("accuracy", "macro_f1", "auc", "calibration_error", "kappa")})
        assert measured["accuracy"]["low"] > 0.8 > 0.3 > measured["majority_class"]
        assert measured["calibration_error"]["value"] < 0.2
