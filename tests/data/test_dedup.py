"""Copies: MinHash is unbiased, every edge is verified, exact copies are found, nothing is dropped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.data.make import files_of
from upslope.config import Input
from upslope.data import hashing, shards
from upslope.data.artifacts import Corpus
from upslope.data.links import Exact, MinHash, candidates, components, normal
from upslope.machine import rng
from upslope.machine.context import Context
from upslope.stages.dedup import Dedup


def vocabulary_text(seed: int, words: int) -> list[str]:
    return [f"w{i}" for i in rng.rng(0, "text", seed).integers(0, 5000, words)]


def edited(words: list[str], every: int, seed: int) -> list[str]:
    out = list(words)
    for i in range(seed % every, len(out), every):
        out[i] = f"edit{seed}x{i}"
    return out


def true_jaccard(a: list[str], b: list[str], n: int = 5) -> float:
    x, y = ({tuple(t[i : i + n]) for i in range(len(t) - n + 1)} for t in (a, b))
    return len(x & y) / len(x | y)


def deduped(folder: Path, corpus: Corpus, **fields: Any) -> Corpus:
    made = Dedup(corpus=Input(stage="docs"), **fields).run(Context.scratch(folder, docs=corpus))
    assert isinstance(made, Corpus)
    return made


def test_kernels_equal_their_numpy_references() -> None:
    link = MinHash()
    a, b = link.hashes()
    for text in ("", "one", "one two three four", " ".join(vocabulary_text(1, 300)), "日本語の文書 mixed Text 12"):
        words = hashing.words(np.frombuffer(text.encode(), np.uint8))
        for n in (1, 3, 5):
            np.testing.assert_array_equal(hashing.shingles(words, n), hashing.shingles_reference(words, n))
        items = hashing.shingles(words, 5)
        np.testing.assert_array_equal(hashing.minhash(items, a, b), hashing.minhash_reference(items, a, b))
    assert (a % np.uint64(2) == 1).all() and a.size == 256


def test_signatures_estimate_jaccard_without_bias() -> None:
    link = MinHash()
    errors, expected = [], []
    for words in (60, 300):
        for seed in range(30):
            one = vocabulary_text(seed, words)
            two = edited(one, 30 + seed, seed)
            true = true_jaccard(one, two)
            estimate = float((link.signature(" ".join(one)) == link.signature(" ".join(two))).mean())
            errors.append(estimate - true)
            expected.append(true * (1 - true) / 256)
            assert link.verify({0: " ".join(one), 1: " ".join(two)}, np.array([[0, 1]], np.uint64))[0] == pytest.approx(true, abs=1e-6)
    rmse, theory = float(np.sqrt(np.mean(np.square(errors)))), float(np.sqrt(np.mean(expected)))
    assert rmse < 1.3 * theory and abs(float(np.mean(errors))) < 3 * theory / np.sqrt(len(errors))


def test_every_edge_is_verified_and_no_near_copy_is_missed(tmp_path: Path) -> None:
    words = [vocabulary_text(s, 200) for s in range(12)]
    words += [edited(words[s], every, s + 1) for s, every in zip(range(8), (100, 80, 60, 50, 45, 30, 20, 10))]
    corpus = Corpus.from_texts(tmp_path / "c", [" ".join(w) for w in words], "s")
    found = {(e["a"], e["b"]): e["similarity"] for e in deduped(tmp_path / "d", corpus, links=(MinHash(),)).edges().to_pylist()}
    truth = {(i, j): true_jaccard(words[i], words[j]) for i in range(20) for j in range(i + 1, 20)}
    assert found == pytest.approx({pair: s for pair, s in truth.items() if s >= 0.8}, abs=1e-6)
    assert 3 <= len(found) <= 7


def test_exact_copies_whatever_their_case_blanks_and_composition(tmp_path: Path) -> None:
    texts = ["Straße  café\n", "STRASSE cafe\u0301", "other", "", "", " \n", "straße cafe"]
    view = deduped(tmp_path / "d", Corpus.from_texts(tmp_path / "c", texts, "s"), links=(Exact(),))
    assert view.edges().to_pylist() == [{"a": 0, "b": 1, "similarity": 1.0, "kind": "exact"}]
    assert normal("A\t b") == "a b" and len(view) == len(texts)


def test_big_buckets_stay_linear_and_say_so(tmp_path: Path) -> None:
    docs, keys = np.arange(100, dtype=np.uint64), np.zeros(100, np.uint64)
    pairs, big = candidates(docs, keys, bucket=10)
    assert big == 1 and len(pairs) == 99 + 98 and len(set(components(100, pairs[:, 0].astype(int), pairs[:, 1].astype(int)))) == 1
    pairs, big = candidates(docs[:10], keys[:10], bucket=10)
    assert big == 0 and len(pairs) == 45
    assert candidates(docs[:0], keys[:0], 10)[0].shape == (0, 2)


def test_copies_across_shards_with_two_workers_give_the_same_bytes(tmp_path: Path) -> None:
    texts = [" ".join(vocabulary_text(s % 700, 12)) for s in range(1500)]
    corpus = Corpus.from_texts(tmp_path / "c", texts, "s")
    one = deduped(tmp_path / "one", corpus)
    ctx = Context.scratch(tmp_path / "two", docs=corpus)
    ctx.workers = 2
    two = Dedup(corpus=Input(stage="docs")).run(ctx)
    assert files_of(one.path) == files_of(two.path)
    pairs = {(e["a"], e["b"]) for e in one.edges().to_pylist() if e["kind"] == "exact"}
    docs = corpus.docs().tolist()
    assert pairs == {(docs[i], docs[j]) for i in range(1500) for j in range(i + 1, 1500) if (j - i) % 700 == 0}


def test_components_are_named_by_their_smallest_member() -> None:
    assert components(6, np.array([4, 1, 5]), np.array([1, 3, 5])).tolist() == [0, 1, 2, 1, 1, 5]


def test_a_batch_without_words_has_no_keys() -> None:
    rows, keys = MinHash().keys(shards.rows_to_batch([{"text": ""}, {"text": "..."}], shards.TEXT))
    assert rows.size == keys.size == 0
