"""Triage of machine-written text. No text of a language model ships with this package: "machine" here is a word-level Markov chain of real
documentation, a stand-in that shows the mechanism and says nothing of how well real models' text is told."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from tests.data.make import files_of
from tests.data.test_classify import corpus
from tests.micro import small_crawl
from upslope.config import Input, Source, UsageError
from upslope.data import shards
from upslope.data.annotators.aitext import AiText as Step
from upslope.data.artifacts import Corpus
from upslope.data.classify import aitext, lm, metrics, train
from upslope.data.classify.artifact import Classifier, buffers
from upslope.data.classify.config import AiText, Ngrams
from upslope.machine.context import Context
from upslope.stages.annotate import Annotate
from upslope.stages.classifier import TrainClassifier
from upslope.stages.extract import Extract
from upslope.stages.ingest import Ingest
from upslope.stats.intervals import clopper_pearson

MODEL = Ngrams(bits=14, dim=4, epochs=6)
CUTOFF = "2022-11-30"


# ── the language model ────────────────────────────────────────────────────────────────────────────────────────────


class WittenBell:
    """The recursion written out with dictionaries."""

    def __init__(self, texts: list[bytes], order: int) -> None:
        self.order = order
        self.counts: dict[bytes, dict[int, int]] = defaultdict(lambda: defaultdict(int))
        for text in texts:
            for i, c in enumerate(text):
                for k in range(min(order, i + 1)):
                    self.counts[text[i - k : i]][c] += 1

    def p(self, c: int, history: bytes) -> float:
        p = 1 / 256
        for k in range(min(self.order, len(history) + 1)):
            seen = self.counts.get(history[len(history) - k :])
            if not seen:
                break
            p = (seen.get(c, 0) + len(seen) * p) / (sum(seen.values()) + len(seen))
        return p

    def bits(self, text: bytes) -> float:
        return -sum(math.log2(self.p(c, text[:i])) for i, c in enumerate(text)) / max(1, len(text))


@settings(deadline=None, max_examples=25)
@given(st.lists(st.text("abé \n", max_size=30), max_size=6), st.lists(st.text("abcé ", max_size=20), max_size=4), st.integers(1, 5))
def test_the_language_model_equals_brute_force(learn: list[str], texts: list[str], order: int) -> None:
    model, reference = lm.train(*buffers(learn), order), WittenBell([t.encode() for t in learn], order)
    assert model.bits(*buffers(texts)) == pytest.approx([reference.bits(t.encode()) for t in texts])


def test_probabilities_sum_to_one_whatever_the_context() -> None:
    reference = WittenBell([b"abracadabra", b"cabbage"], 4)
    model = lm.train(*buffers(["abracadabra", "cabbage"]), 4)
    for context in ("", "a", "abra", "zz", "cab"):
        assert sum(reference.p(c, context.encode()) for c in range(256)) == pytest.approx(1)
        base = float(model.bits(*buffers([context]))[0]) * len(context)
        ascii_ = [2 ** -(float(model.bits(*buffers([context + chr(c)]))[0]) * (len(context) + 1) - base) for c in range(128)]
        # bytes above 127 were never seen: each has the same share as an unseen ASCII byte
        assert sum(ascii_) + 128 * min(ascii_) == pytest.approx(1)


def test_order_of_texts_does_not_matter_and_a_limit_cuts() -> None:
    texts = ["the moon", "the sea", "a tide of the sea"]
    a, b = lm.train(*buffers(texts), 3), lm.train(*buffers(texts[::-1]), 3)
    assert all(np.array_equal(x, y) for x, y in zip(a, b))
    assert a.bits(*buffers(["the sun"]), 4)[0] == a.bits(*buffers(["the "]))[0]
    assert a.bits(*buffers([""]))[0] == 0


# ── threshold and posterior ───────────────────────────────────────────────────────────────────────────────────────


def test_the_threshold_is_the_conformal_quantile() -> None:
    scores = np.random.default_rng(0).permutation(199).astype(float)
    assert aitext.threshold(scores, 0.05) == 189  # ⌈200 · 0.95⌉ = 190th smallest of 0 … 198
    assert aitext.threshold(scores[:99], 0.01) == scores[:99].max()
    with pytest.raises(UsageError, match="it takes 99"):
        aitext.threshold(scores[:98], 0.01)


def test_a_new_human_page_exceeds_the_threshold_as_rarely_as_promised() -> None:
    r = np.random.default_rng(1)
    above = [float(r.standard_cauchy() > aitext.threshold(r.standard_cauchy(49), 0.1)) for _ in range(4000)]
    assert np.mean(above) == pytest.approx(0.1, abs=3 * math.sqrt(0.09 / 4000))


@pytest.mark.parametrize(
    ("date", "early"),
    [
        ("2022-11-29T23:59:59Z", True),
        ("2022-11-29", True),
        ("2022-11-30", False),
        ("2024-06-01", False),
        ("", False),
        (None, False),
        ("1999", False),
    ],
)
def test_only_a_whole_date_before_the_cutoff_is_proof(date: str | None, early: bool) -> None:
    assert aitext.is_before(date, CUTOFF) is early


# ── real documentation against a Markov chain of it ───────────────────────────────────────────────────────────────


def markov(texts: list[str], n: int, seed: int) -> list[str]:
    """Texts of a chain of word pairs : locally plausible, without a thread."""
    counts: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    for text in texts:
        words = text.split()
        for a, b in zip(words, words[1:]):
            counts[a][b] += 1
    follow = {a: [b for b, n in bs.items() for _ in range(n)] for a, bs in counts.items()}
    r = np.random.default_rng(seed)
    starts = sorted(follow)
    out = []
    for i in range(n):
        word = starts[r.integers(len(starts))]
        words = [word]
        for _ in range(int(r.integers(60, 200))):
            options = follow.get(word) or starts
            word = options[r.integers(len(options))]
            words.append(word)
        tail = " As an AI language model, I hope this helps." if i % 10 == 0 else ""
        out.append(" ".join(words) + tail)
    return out


@pytest.fixture(scope="module")
def sides(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Corpus]:
    """Paragraphs of pages of the shipped crawl (written by people; dated 2021 here, which the real files are not) and Markov texts."""
    folder = tmp_path_factory.mktemp("aitext")
    pages = Ingest(sources=(Source(uri=str(small_crawl(folder, 16))),)).run(Context.scratch(folder / "pages"))
    text = Extract(pages=Input(stage="p")).run(Context.scratch(folder / "text", p=pages))
    assert isinstance(text, Corpus)
    human: list[str] = []
    elsewhere: list[str] = []  # the chain is made of other pages: it must not know the wording of those that it is told from
    pages_seen = 0
    for batch in text.batches(("text", "source")):
        for page, of in zip(batch["text"].to_pylist(), batch["source"].to_pylist()):
            if not of.startswith("libreoffice"):
                parts = [" ".join(p.split()) for p in page.split("\n\n") if len(p.split()) > 25][:8]
                (human if pages_seen % 2 else elsewhere).extend(parts)
                pages_seen += 1
    machine = markov(elsewhere, len(human), 0)
    dates = ["2021-05-01T00:00:00Z" if i % 10 else "2024-01-01" for i in range(len(human))]
    return {
        "human": corpus(folder / "h", human, "docs", date=dates, lang=["en"] * len(human)),
        "machine": corpus(folder / "m", machine, "markov"),
    }


def run(folder: Path, sides: dict[str, Corpus], seed: int = 0, model: Ngrams = MODEL, **fields: Any) -> Classifier:
    form = AiText(human=(Input(stage="human"),), machine=(Input(stage="machine"),), **{"fpr": 0.05, "order": 4, **fields})
    found = TrainClassifier(purpose="tests", form=form, model=model, test=0.3, dev=0.3).run(Context.scratch(folder, seed=seed, **sides))
    assert isinstance(found, Classifier)
    return found


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory, sides: dict[str, Corpus]) -> Classifier:
    return run(tmp_path_factory.mktemp("found"), sides)


def test_the_card_states_the_false_positive_rate_that_is_counted(found: Classifier, sides: dict[str, Corpus]) -> None:
    measured, training = found.card["metrics"], found.card["training"]
    urls = {r["url"] for r in shards.read(found.path / "labels.parquet").to_pylist() if r["split"] == "test" and r["label"] == "human"}
    rows = [r for b in sides["human"].batches(("url", "text", "date")) for r in b.to_pylist()]
    assert {r["date"][:4] for r in rows if r["url"] in urls} == {"2021"}  # pages of 2024 are nobody's proof
    read = found.detector.read(shards.pa.array([r["text"] for r in rows if r["url"] in urls]), [""] * len(urls))
    k = sum(map(bool, read["flagged"]))
    rate = measured["false_positive_rate"]
    assert (rate["value"], rate["low"], rate["high"], rate["n"]) == (*clopper_pearson(k, len(urls)), len(urls))
    assert rate["low"] <= 0.05
    assert training["false_positives_measured_on"] == f"pages crawled before {CUTOFF}"
    assert training["human_pages_left_out_as_not_early"] == sum(r["date"][:4] == "2024" for r in rows)
    assert "weak evidence" not in str(found.card["limits"]) or rate["n"] < 30
    assert "false positive rate" in (found.path / "card.md").read_text()


def test_signals_together_beat_each_alone_on_the_stand_in(found: Classifier) -> None:
    measured = found.card["metrics"]
    assert set(measured["signals"]) == {"ngrams", "ratio", "phrases"}
    assert measured["auc"]["value"] > 0.9
    assert measured["true_positive_rate"]["value"] > 0.5
    assert measured["auc"]["value"] >= max(s["auc"] for s in measured["signals"].values()) - 0.02
    assert measured["signals"]["phrases"]["true_positive_rate"]["value"] == pytest.approx(0.1, abs=0.08)
    assert all(w > 0 for w in found.body["coefficients"]["weight"])


def test_phrases_are_counted_whatever_their_case(found: Classifier) -> None:
    signals = found.detector.signals(["AS AN AI LANGUAGE MODEL, as an AI assistant", "I am a teapot", "naïve"])
    assert signals[:, 2] == pytest.approx([math.log(3), 0, 0])


def test_columns_and_dates(found: Classifier, sides: dict[str, Corpus], tmp_path: Path) -> None:
    step = Step(classifier=Input(stage="ai"))
    view = Annotate(corpus=Input(stage="m"), steps=(step,)).run(Context.scratch(tmp_path, m=sides["machine"], ai=found))
    assert isinstance(view, Corpus)
    rows = [r["aitext"] for b in view.batches(("aitext",)) for r in b.to_pylist()]
    assert np.mean([r["flagged"] for r in rows]) > 0.5
    prior = found.body["prior"]
    for r in rows[:50]:
        odds = r["score"] / (1 - r["score"] + 1e-12) * prior / (1 - prior)
        assert r["posterior"] == pytest.approx(odds / (1 + odds), rel=1e-3, abs=1e-5)
    bound = step.bind(Context.scratch(tmp_path / "b", ai=found))
    text = next(sides["machine"].texts())
    dated = [(text, "2021-01-01"), (text, "2024-01-01"), (text, None), ("", "")]
    batch = shards.rows_to_batch([{"text": t, "date": d} for t, d in dated], shards.TEXT)
    early, late, undated, empty = bound(batch).to_pylist()
    assert (early["posterior"], early["flagged"], early["before"]) == (0.0, False, True)
    assert late == undated
    assert early["score"] == late["score"] > 0
    assert set(empty.values()) == {None}
    parts = [bound(batch.slice(i, 1)).to_pylist()[0] for i in range(4)]
    assert parts == [early, late, undated, empty]


ODD = ["\0", "😀" * 40, "漢字" * 30, "x" * 50_000, "\n" * 99, "a b " * 999]


def test_odd_texts_give_finite_numbers(found: Classifier) -> None:
    signals = found.detector.signals(ODD)
    assert np.isfinite(signals).all()
    assert np.array_equal(signals, np.concatenate([found.detector.signals([t]) for t in ODD]))


def test_the_score_is_calibrated_at_equal_priors(found: Classifier) -> None:
    assert found.card["metrics"]["calibration_error"]["value"] < 0.15


def test_the_same_bits_again_and_every_knob_turns_something(
    tmp_path: Path, sides: dict[str, Corpus], found: Classifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert files_of(run(tmp_path / "same", sides).path) == files_of(found.path)
    monkeypatch.setattr(metrics, "DRAWS", 5)
    changes: list[dict[str, Any]] = [
        {"seed": 1}, {"model": MODEL.replace(grams=1)}, {"cutoff": "2025-01-01"}, {"trusted": True}, {"order": 3}, {"lm_bytes": 20_000},
        {"limit": 200}, {"phrases": ("teapot",)},
    ]  # fmt: skip
    seen = {"": measured_of(found)}
    for i, change in enumerate(changes):
        seen[str(change)] = measured_of(run(tmp_path / str(i), sides, **change))
    distinct = list(seen.values())
    assert [(a, b) for i, a in enumerate(seen) for j, b in enumerate(seen) if i < j and distinct[i] == distinct[j]] == [
        ("{'cutoff': '2025-01-01'}", "{'trusted': True}")  # either admits the pages of 2024
    ] or len({json.dumps(d) for d in distinct}) == len(distinct)
    weak = {"model": MODEL.replace(epochs=1, lr=0.01), "lm_bytes": 500, "order": 1}  # so that the kinds overlap, and the rate matters
    bars = [run(tmp_path / f"fpr-{p}", sides, fpr=p, **weak).body["threshold"] for p in (0.05, 0.3)]
    assert bars[0] > bars[1]
    low, high = (run(tmp_path / f"prior-{p}", sides, prior=p).detector for p in (0.01, 0.5))
    text = next(sides["machine"].texts())
    assert low.read(shards.pa.array([text]), [""])["posterior"][0] < high.read(shards.pa.array([text]), [""])["posterior"][0]


def measured_of(found: Classifier) -> list[Any]:
    body = found.body
    return [body["coefficients"], body["threshold"], found.card["metrics"]["false_positive_rate"]]


def test_without_early_pages_it_refuses_or_says_that_it_trusts(tmp_path: Path, sides: dict[str, Corpus]) -> None:
    texts = list(sides["human"].texts())
    late = {"human": corpus(tmp_path / "late", texts, "late", date=["2024-01-01"] * len(texts)), "machine": sides["machine"]}
    with pytest.raises(UsageError, match=f"{len(texts)} pages of `human` are not from before"):
        run(tmp_path / "a", late)
    trusted = run(tmp_path / "b", late, trusted=True)
    assert trusted.card["training"]["false_positives_measured_on"] == "pages vouched for as human, not dated"
    with pytest.raises(UsageError, match="too few"):
        run(tmp_path / "c", sides, fpr=0.0001)


def test_embeddings_are_refused() -> None:
    from upslope.data.classify.config import Embedding
    from upslope.data.embedders.hashed import Hashed

    form = AiText(human=(Input(stage="h"),), machine=(Input(stage="m"),))
    with pytest.raises(ValidationError, match="needs a model of kind ngrams"):
        TrainClassifier(purpose="x", form=form, model=Embedding(embedder=Hashed()))


def test_a_sample_fills_its_budget_and_is_never_empty() -> None:
    from upslope.stages.classifier import _sample

    rows = [train.Example(f"text {i:03d}", "x", {}, 0.0) for i in range(100)]
    assert len(_sample(rows, 80)) == 10
    assert len(_sample(rows, 1)) == 1
    assert set(_sample(rows, 80)) < set(_sample(rows[::-1], 160))


def test_metrics_of_triage_by_hand() -> None:
    class Fixed:
        body = {"threshold": 0.5}

        def combined(self, s: np.ndarray) -> np.ndarray:
            return np.asarray(s.sum(axis=1))

    human, machine = np.diag([0.1, 0.9, 0.2]), np.diag([0.4, 0.8, 0.7])
    chosen = np.linspace(0, 0.3, 19)[:, None] * np.ones(3)
    out = metrics.triage(Fixed(), chosen, [human, machine], 0.05, clopper_pearson, 0)
    assert out["false_positive_rate"]["value"] == pytest.approx(1 / 3)
    assert out["true_positive_rate"]["value"] == pytest.approx(2 / 3)
    assert out["auc"]["value"] == pytest.approx(6 / 9)
