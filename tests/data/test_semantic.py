"""Embedders say how alike texts are, whatever the batch; k-means is what it says; semantic links are those of brute force; D4."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.data.test_dedup import batch_of, deduped, pairs_of, winners
from upslope.config import Source, UsageError
from upslope.data import artifacts, features, folding
from upslope.data.artifacts import Corpus
from upslope.data.embed import Embedder
from upslope.data.embedders.hashed import Hashed
from upslope.data.embedders.table import Table
from upslope.data.links import Semantic
from upslope.data.links.semantic import kmeans, nearest, sampled
from upslope.data.protocol import Rule
from upslope.machine import rng

TOPICS = [
    "the old mill by the river grinds wheat and rye for the villages of the valley below",
    "a compiler turns source code into machine instructions after several optimisation passes",
    "heart surgeons replaced the damaged valve in an operation that took nearly nine hours",
    "the orchestra rehearsed the second movement until the brass section kept the tempo",
    "grain prices rose sharply when the drought reached the northern provinces in summer",
    "tectonic plates drift apart along the ridge and molten rock fills the opening gap",
]


def paraphrased(text: str, seed: int) -> str:
    """A few words swapped with their neighbours and one doubled: other shingles, nearly the same words."""
    words = text.split()
    for i in rng.rng(0, "swap", seed).integers(0, len(words) - 1, 3).tolist():
        words[i], words[i + 1] = words[i + 1], words[i]
    return " ".join([*words, words[seed % len(words)]])


def corpus_of(folder: Path, copies: int = 8) -> tuple[Corpus, list[str]]:
    texts = [paraphrased(t, 100 * i + j) for i, t in enumerate(TOPICS) for j in range(copies)]
    return Corpus.from_texts(folder, texts, "s"), texts


# ── embedders ─────────────────────────────────────────────────────────────────────────────────────────────────────


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(st.characters(codec="utf-8"), max_size=30), max_size=6))
def test_vectors_have_length_one_and_do_not_depend_on_the_batch(texts: list[str]) -> None:
    made = Hashed(dim=32, spread=4)(texts)
    assert made.shape == (len(texts), 32) and made.dtype == np.float32
    length = np.linalg.norm(made, axis=1)
    for i, text in enumerate(texts):
        np.testing.assert_array_equal(made[i], Hashed(dim=32, spread=4)([text])[0])
        counts = [folding.counts_as(np.uint64(ord(c)), folding.table()) for c in text]
        seen = any(c and (not int(c) & folding.SKIP or int(c) & folding.ALONE) for c in counts)
        assert length[i] == pytest.approx(1.0 if seen else 0.0, abs=1e-5)


def features_in_python(text: str) -> list[dict[Any, float]]:
    """Weights of words, pairs and runs of four characters: plain counting, for lower-case ASCII text."""
    words = "".join(c if c.isalnum() else " " for c in text.lower()).split()
    line = " ".join(words)
    weight = [min(1.0, len(w) / 8) for w in words]
    out: list[dict[Any, float]] = []
    pairs = [(a, b) for a, b in zip(words, words[1:])]
    runs = [line[i : i + 4] for i in range(len(line) - 3)]
    pair_weight = [(a * b) ** 0.5 for a, b in zip(weight, weight[1:])]
    for items, weights in ((words, weight), (pairs, pair_weight), (runs, [1.0] * len(runs))):
        value = dict(zip(items, weights))
        out.append({x: value[x] * (1 + np.log(items.count(x))) for x in value})
    return out


def cosine_in_python(a: str, b: str, alpha: tuple[float, float, float] = (1.0, 0.5, 0.5)) -> float:
    def dot(x: dict[Any, float], y: dict[Any, float]) -> float:
        return sum(v * y.get(k, 0.0) for k, v in x.items())

    families = list(zip(features_in_python(a), features_in_python(b), alpha))
    both = sum(w * w * dot(x, y) / (dot(x, x) * dot(y, y)) ** 0.5 for x, y, w in families)
    return both / sum(w * w for w in alpha)


def test_inner_products_estimate_the_cosine_of_the_features() -> None:
    texts = [t + "." for t in TOPICS[:4]] + [paraphrased(t, i) + "." for i, t in enumerate(TOPICS[:4])]
    pairs = [(i, j) for i in range(8) for j in range(i)]
    true = np.array([cosine_in_python(texts[i], texts[j]) for i, j in pairs])
    for dim in (64, 1024):
        vectors = [Hashed(dim=dim, seed=s)(texts) for s in range(40)]
        errors = np.array([[float(x[i] @ x[j]) for i, j in pairs] for x in vectors]) - true
        rmse = np.sqrt((errors**2).mean())
        assert 0.4 / np.sqrt(dim) < rmse < 1.2 / np.sqrt(dim)
        assert (np.abs(errors.mean(axis=0)) < 4 * errors.std(axis=0) / np.sqrt(40) + 1 / dim).all()


def test_every_setting_of_hashed_matters() -> None:
    base = Hashed()(TOPICS)
    for other in ({"dim": 128}, {"words": 0.0}, {"pairs": 0.0}, {"chars": 0.0}, {"lengths": False}, {"spread": 4}, {"seed": 1}):
        assert not np.array_equal(Hashed(**other)(TOPICS), base)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="multiple of spread"):
        Hashed(dim=100)
    with pytest.raises(ValueError, match="nothing to embed"):
        Hashed(words=0, pairs=0, chars=0)
    assert features.RUN == 4


def table_folder(folder: Path, names: Sequence[str] = ("emb",)) -> tuple[Path, np.ndarray]:
    from safetensors.numpy import save_file
    from tokenizers import Tokenizer, models, pre_tokenizers

    vocabulary = {w: i for i, w in enumerate(["[UNK]", "river", "stone", "cloud", "far"])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, "[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.enable_truncation(2)
    folder.mkdir()
    tokenizer.save(str(folder / "tokenizer.json"))
    matrix = rng.rng(0, "table").standard_normal((4, 6)).astype(np.float16)  # "far" has no vector
    save_file({**dict.fromkeys(names, matrix), "bias": np.zeros(3, np.float32)}, folder / "m.safetensors")
    return folder, matrix


def test_a_table_averages_the_vectors_of_the_tokens(tmp_path: Path) -> None:
    folder, matrix = table_folder(tmp_path / "t")
    x = Table(folder=Source(uri=str(folder)))(["river stone river", "far", "", "cloud far"])
    expected = matrix[[1, 2, 1]].astype(np.float64).mean(axis=0)
    np.testing.assert_allclose(x[0], expected / np.linalg.norm(expected), atol=1e-6)
    assert not x[1:3].any() and x[3] @ matrix[3] == pytest.approx(np.linalg.norm(matrix[3].astype(float)), rel=1e-3)
    assert Table(folder=Source(uri=str(folder)), dim=2)(["river"]).shape == (1, 2)
    json.loads((folder / "tokenizer.json").read_text())


def test_a_table_says_what_is_missing(tmp_path: Path) -> None:
    two, _ = table_folder(tmp_path / "two", ("a", "b"))
    with pytest.raises(UsageError, match="matrices a, b; name one"):
        Table(folder=Source(uri=str(two)))(["x"])
    assert Table(folder=Source(uri=str(two)), tensor="b")(["river"]).any()
    with pytest.raises(UsageError, match="dim = 9, but the vectors"):
        Table(folder=Source(uri=str(two)), tensor="a", dim=9)(["x"])
    (two / "tokenizer.json").unlink()
    with pytest.raises(UsageError, match="must be a folder with tokenizer"):
        Table(folder=Source(uri=str(two)), tensor="a", dim=1)(["x"])


# ── k-means ───────────────────────────────────────────────────────────────────────────────────────────────────────


def planted(count: int, k: int, noise: float) -> tuple[np.ndarray, np.ndarray]:
    generator = rng.rng(0, "planted", count)
    centres = generator.standard_normal((k, 16))
    label = generator.integers(0, k, count)
    x = centres[label] + noise * generator.standard_normal((count, 16))
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32), label


def test_kmeans_is_deterministic_and_every_round_raises_its_objective() -> None:
    x, _ = planted(600, 12, 0.5)
    gains = [float(nearest(x, kmeans(x, 12, rounds))[1].sum()) for rounds in (1, 2, 4, 8, 30)]
    assert gains == sorted(gains) and gains[-1] > gains[0]
    np.testing.assert_array_equal(kmeans(x, 12, 30), kmeans(x.copy(), 12, 30))
    centroids = kmeans(x, 12, 100)
    cell, cosine = nearest(x, centroids)
    np.testing.assert_allclose(cosine, (x.astype(np.float64) @ centroids.T).max(axis=1), atol=1e-6)
    for c in range(12):  # a fixed point: each centroid is the direction of its cell's sum
        mean = x[cell == c].astype(np.float64).sum(axis=0)
        np.testing.assert_allclose(centroids[c], mean / np.linalg.norm(mean), atol=1e-5)


def test_no_cell_stays_empty_and_too_few_points_give_fewer_cells() -> None:
    x, _ = planted(60, 3, 0.01)
    assert len(np.unique(nearest(x, kmeans(x, 20, 50))[0])) >= 18
    assert len(kmeans(np.repeat(x[:2], 5, axis=0), 4, 5)) == 2
    assert nearest(x[:0], kmeans(x, 3, 2))[0].size == 0


def test_the_nearest_cell_of_a_row_does_not_depend_on_its_neighbours() -> None:
    x, _ = planted(700, 8, 0.6)
    centroids = kmeans(x, 8, 5)
    cell, cosine = nearest(x, centroids)
    for part in (slice(0, 1), slice(3, 520), slice(699, 700)):
        np.testing.assert_array_equal(nearest(x[part], centroids)[0], cell[part])
        np.testing.assert_array_equal(nearest(x[part], centroids)[1], cosine[part])


# ── links ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_edges_are_all_pairs_of_a_cell_that_are_near(tmp_path: Path) -> None:
    corpus, texts = corpus_of(tmp_path / "c")
    for cells, eps in ((1, 0.3), (6, 0.3), (6, 0.2)):
        view = deduped(tmp_path / f"d{cells}-{eps}", corpus, links=(Semantic(eps=eps, cells=cells),))
        x = Hashed()(texts).astype(np.float64)
        cell = [c for b in view.batches(("semantic.cell",)) for c in b["semantic.cell"].to_pylist()]
        n = len(texts)
        near = {(i, j): x[i] @ x[j] for i in range(n) for j in range(i + 1, n) if cell[i] == cell[j]}
        expected = {pair: s for pair, s in near.items() if np.float32(s) >= np.float32(1 - eps)}
        assert len(set(cell)) == cells and len(expected) > 20
        assert pairs_of(view, "semantic") == pytest.approx(expected, abs=1e-6)


def test_planted_paraphrases_are_found_where_minhash_finds_none(tmp_path: Path) -> None:
    corpus, _ = corpus_of(tmp_path / "c")
    view = deduped(tmp_path / "d", corpus, links=({"kind": "minhash"}, {"kind": "semantic", "eps": 0.3, "cells": 4}))
    sizes = [x for b in view.batches(("cluster.size",)) for x in b["cluster.size"].to_pylist()]
    found = pairs_of(view, "semantic")
    assert sizes == [8] * 48 and all(a // 8 == b // 8 for a, b in found)
    assert len(pairs_of(view, "minhash")) < 0.1 * len(found)


def test_shards_change_nothing_and_only_the_living_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    corpus, texts = corpus_of(tmp_path / "c")
    link = Semantic(eps=0.3)
    whole = deduped(tmp_path / "d", corpus, links=(link,))
    monkeypatch.setattr(artifacts, "SHARD_ROWS", 7)
    parts = deduped(tmp_path / "e", Corpus.from_texts(tmp_path / "p", texts, "s"), links=(link,))

    def columns(view: Corpus) -> pa.Table:
        return pa.Table.from_batches(list(view.batches(("semantic",)))).combine_chunks()

    assert pairs_of(whole) == pairs_of(parts) and columns(whole) == columns(parts)
    np.testing.assert_array_equal(sampled(corpus, Hashed(), 20, 0), sampled(Corpus(tmp_path / "p"), Hashed(), 20, 0))
    assert len(sampled(corpus, Hashed(), 20, 0)) == 20 and len(sampled(corpus, Hashed(), 99, 0)) == 48
    assert not np.array_equal(sampled(corpus, Hashed(), 20, 1), sampled(corpus, Hashed(), 20, 0))


def test_the_least_typical_wins_and_the_most_typical_can_be_dropped(tmp_path: Path) -> None:
    corpus, _ = corpus_of(tmp_path / "c")
    view = deduped(tmp_path / "d", corpus, links=(Semantic(eps=0.3, cells=6),))
    rows = [r for b in view.batches(("semantic",)) for r in b["semantic"].to_pylist()]
    cosine = np.array([r["cosine"] for r in rows])
    kept = winners(view, "semantic.cosine, doc")
    sizes = [x for b in view.batches(("cluster.id",)) for x in b["cluster.id"].to_pylist()]
    assert kept == sorted(min((i for i in range(48) if sizes[i] == c), key=lambda i: (cosine[i], i)) for c in set(sizes))
    rank = np.array([r["rank"] for r in rows])
    np.testing.assert_allclose(rank, [(cosine < c).mean() for c in cosine], atol=0.03)
    order = np.argsort(cosine)
    assert (np.diff(rank[order]) >= 0).all() and rank.min() == 0 and 0.9 < rank.max() <= 1
    view.body["edges"] = []
    alive = winners(view, "doc", (Rule(name="d4", keep="semantic.rank <= 0.75"),))
    assert 33 <= len(alive) <= 38 and cosine[alive].max() <= np.delete(cosine, alive).min()


def test_every_setting_of_semantic_matters(tmp_path: Path) -> None:
    corpus, _ = corpus_of(tmp_path / "c")

    def made(name: str, **fields: Any) -> tuple[Any, ...]:
        view = deduped(tmp_path / name, corpus, links=(Semantic(**fields),))
        return (pairs_of(view), [r for b in view.batches(("semantic",)) for r in b["semantic"].to_pylist()])

    base = made("base", eps=0.3)
    others: dict[str, dict[str, Any]] = {
        "eps": {"eps": 0.1},
        "cells": {"cells": 3},
        "sample": {"sample": 20},
        "rounds": {"rounds": 1},
        "seed": {"seed": 5},
        "embedder": {"embedder": {"kind": "hashed", "dim": 64}},
    }
    for name, fields in others.items():
        assert made(name, **{"eps": 0.3, **fields}) != base, name


def test_a_dense_cluster_stays_whole_with_few_edges() -> None:
    link = Semantic(eps=0.2)
    from upslope.data.links.semantic import BoundSemantic

    bound = BoundSemantic(embedder=Hashed(), eps=link.eps, centroids=Source(uri="."))
    x, _ = planted(1500, 1, 0.05)
    i, j, s = bound.within(x, 4)
    assert (i < j).all() and i.size <= 1500 * 5 and (s >= np.float32(0.8)).all()
    from upslope.data.links import components

    assert set(components(1500, i, j).tolist()) == {0}
    every = bound.within(x[:300], 300)
    assert every[0].size == 300 * 299 // 2


class Bad(Embedder):
    """An embedder that gives nonsense."""

    kind: ClassVar[str] = "bad"

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        return np.full((len(texts), 3), np.nan, np.float32)


def test_bad_embedders_and_empty_texts(tmp_path: Path) -> None:
    corpus = Corpus.from_texts(tmp_path / "c", ["", "...", "one", "one", ""], "s")
    with pytest.raises(UsageError, match="gave"):
        deduped(tmp_path / "bad", corpus, links=(Semantic(embedder=Bad()),))
    view = deduped(tmp_path / "d", corpus, links=(Semantic(),))
    rows = [r for b in view.batches(("semantic",)) for r in b["semantic"].to_pylist()]
    assert pairs_of(view) == {(2, 3): 1.0} and [r["cell"] for r in rows] == [None, None, 0, 0, None]
    empty = deduped(tmp_path / "e", Corpus.from_texts(tmp_path / "n", ["", ""], "s"), links=(Semantic(),))
    assert pairs_of(empty) == {}
    deduped(tmp_path / "f", Corpus.from_texts(tmp_path / "m", [], "s"), links=(Semantic(),))
    assert batch_of([]).num_rows == 0
