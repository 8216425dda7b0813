"""Copies: MinHash is unbiased, every edge is verified, nothing depends on shards or batches, nothing is dropped, the best copy wins."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.data.make import files_of
from upslope.config import Input, UsageError
from upslope.data import artifacts, curation, folding, hashing, shards
from upslope.data.artifacts import Corpus
from upslope.data.links import Exact, MinHash, components, graph
from upslope.data.links.exact import normal
from upslope.data.protocol import Link, Rule
from upslope.machine import rng
from upslope.machine.context import Context
from upslope.stages.dedup import Dedup
from upslope.stages.tokenize import Tokenize

TEXTS = st.lists(st.text(st.characters(codec="utf-8"), max_size=40), max_size=8)
TRICKY = st.text(st.sampled_from("aAbZß éÉe\u0301Йй \u00a0\u2003\n\t—“’.,中文あｶไท㎏²\u200d\ufe0f\u00ad😀𠀋0٣\u0000"), max_size=30)


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


def batch_of(texts: list[str]) -> pa.RecordBatch:
    return shards.rows_to_batch([{"text": t, "url": "", "source": "s"} for t in texts], shards.TEXT)


def deduped(folder: Path, corpus: Corpus, **fields: Any) -> Corpus:
    made = Dedup(corpus=Input(stage="docs"), **fields).run(Context.scratch(folder, docs=corpus))
    assert isinstance(made, Corpus)
    return made


def pairs_of(view: Corpus, kind: str = "") -> dict[tuple[int, int], float]:
    """Edges as {(row, row) in the whole view: similarity}."""
    place = {doc: i for i, doc in enumerate(view.docs().tolist())}
    rows = view.edges().to_pylist()
    return {(place[e["a"]], place[e["b"]]): e["similarity"] for e in rows if not kind or e["kind"] == kind}


# ── words ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def words_in_python(text: str) -> list[str]:
    """The definition in `data.folding`, character by character."""
    out: list[str] = []
    inside = False
    for c in text:
        category, point = unicodedata.category(c), ord(c)
        if 0x300 <= point <= 0x36F or 0x200B <= point <= 0x200F or 0x2060 <= point <= 0x2064 or 0xFE00 <= point <= 0xFE0F:
            continue
        if point in (0xAD, 0xFEFF):
            continue
        unspaced = any(first <= point <= last for first, last in folding.UNSPACED)
        if point > 0xFFFF:
            out.append(c)
            inside = False
        elif category[0] not in "LNM" and category not in ("Cn", "Co"):
            inside = False
        elif unspaced:
            out.append(unicodedata.normalize("NFKC", c) if len(unicodedata.normalize("NFKD", c)) == 1 and point >= 0xF900 else c)
            inside = False
        else:
            base = [d for d in unicodedata.normalize("NFKD", c.lower()) if not 0x300 <= ord(d) <= 0x36F]
            letter = base[0] if len(base) == 1 and ord(base[0]) < 0x10000 and (category != "Lo" or point < 0x300 or point >= 0xF900) else c
            out = [*out[:-1], out[-1] + letter] if inside else [*out, letter]
            inside = True
    return out


@settings(max_examples=100, deadline=None)
@given(st.one_of(TRICKY, st.text(st.characters(codec="utf-8"), max_size=40)))
def test_words_are_as_defined(text: str) -> None:
    expected, found = words_in_python(text), hashing.words(np.frombuffer(text.encode(), np.uint8)).tolist()
    assert len(expected) == len(found)
    assert len(set(zip(expected, found))) == len(set(expected)) == len(set(found))


def test_case_accents_width_and_composition_do_not_count_but_letters_do() -> None:
    def words(text: str) -> list[int]:
        return list(hashing.words(np.frombuffer(text.encode(), np.uint8)).tolist())

    assert words("Café “Ärger” ＡＢＣ x²") == words("cafe\u0301 arger, abc x2")
    assert words("soft\u00adhyphen") == words("softhyphen") and words("one—two") == words("one two")
    assert len(words("日本語の文")) == 5 and len(words("สวัสดี")) == 6 and len(words("два слова")) == 2
    assert words("abc") != words("abd") and words("日本") != words("日木")


def test_kernels_equal_numpy() -> None:
    link = MinHash()
    a, b = link.hashes()
    assert (a % 2 == 1).all() and a.size == 256 and a.dtype == np.uint32
    texts = ["", "one", "one two three four", " ".join(vocabulary_text(1, 300)), "日本語の文書 mixed Text 12"]
    counts, signatures = link.signatures(pa.array(texts))
    starts, sets = hashing.shingle_sets(*hashing.column(pa.array(texts)), 5)
    for row, text in enumerate(texts):
        words = hashing.words(np.frombuffer(text.encode(), np.uint8))
        items = hashing.shingles(words, 5)
        assert counts[row] == words.size and items.size == max(0, words.size - min(5, words.size) + 1) * (words.size > 0)
        np.testing.assert_array_equal(sets[starts[row] : starts[row + 1]], np.unique(items))
        values = (items >> np.uint64(32)).astype(np.uint32)[:, None] * a + b
        np.testing.assert_array_equal(signatures[row], np.vstack([values, np.full(256, 0xFFFFFFFF, np.uint32)]).min(axis=0))
        np.testing.assert_array_equal(signatures[row], hashing.minhash(items, a, b))


def test_a_column_is_read_as_it_lies_in_memory() -> None:
    for kind in (pa.string(), pa.large_string()):
        array = pa.array(["left", None, "é", ""], kind)[1:]
        offsets, data = hashing.column(array)
        assert [bytes(data[i:j]).decode() for i, j in zip(offsets, offsets[1:])] == ["", "é", ""]
    assert hashing.column(pa.array([], pa.string()))[0].tolist() == [0]


# ── MinHash ───────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("words", [50, 100, 300, 600, 2000])
def test_signatures_estimate_jaccard_without_bias(words: int) -> None:
    errors, expected = [], []
    link = MinHash()
    for target in (0.5, 0.8, 0.9):
        edits = max(1, round((words - 4) * (1 - target) / (1 + target) / 5))
        pairs = []
        for seed in range(40 if words > 600 else 70):
            one = vocabulary_text(seed + 1000 * words, words)
            pairs.append((one, edited(one, max(5, words // edits), seed)))
        left, right = (link.signatures(pa.array([" ".join(p[i]) for p in pairs]))[1] for i in (0, 1))
        for (one, two), estimate in zip(pairs, (left == right).mean(axis=1).tolist()):
            true = true_jaccard(one, two)
            errors.append(estimate - true)
            expected.append(true * (1 - true) / 256)
    rmse, theory = float(np.sqrt(np.mean(np.square(errors)))), float(np.sqrt(np.mean(expected)))
    assert rmse < 1.15 * theory and abs(float(np.mean(errors))) < 3 * theory / np.sqrt(len(errors))


def test_recall_and_precision_at_the_threshold(tmp_path: Path) -> None:
    words: list[list[str]] = []
    for s in range(400):
        one = vocabulary_text(s, 150)
        words += [one, edited(one, (60, 50, 45, 40)[s % 4], s)]
    truth = {(i, i + 1): true_jaccard(words[i], words[i + 1]) for i in range(0, 800, 2)}
    copies = {pair: s for pair, s in truth.items() if s >= 0.8}
    assert 250 < len(copies) < 350
    found = pairs_of(deduped(tmp_path / "d", Corpus.from_texts(tmp_path / "c", [" ".join(w) for w in words], "s"), links=(MinHash(),)))
    assert all(found[pair] == pytest.approx(truth[pair], abs=1e-6) for pair in found)  # every edge is measured, and no stranger is linked
    assert len(found.keys() & copies.keys()) >= 0.99 * len(copies) and found.keys() <= copies.keys()


def test_every_setting_of_minhash_matters() -> None:
    texts = [" ".join(vocabulary_text(1, 60)), " ".join(edited(vocabulary_text(1, 60), 20, 1))]
    pair, both = np.array([[0, 1]], np.uint64), dict(enumerate(texts))
    plain = MinHash()
    base = plain.sketch(batch_of(texts))
    assert base.keys.size == 64 and base.rows.tolist() == [0] * 32 + [1] * 32 and base.body.shape == (2, 256)
    for other in (MinHash(seed=1), MinHash(shingle=4), MinHash(bands=16), MinHash(rows=4)):
        assert not np.array_equal(other.sketch(batch_of(texts)).keys, base.keys)
    assert MinHash(shingle=1).verify(both, pair)[0] > plain.verify(both, pair)[0] > 0
    assert MinHash(threshold=0.5).least == 0.5 and MinHash(bands=8).slack > plain.slack > 0


def test_a_batch_without_words_has_no_keys() -> None:
    for link in (MinHash(), Exact()):
        assert link.sketch(batch_of(["", " \n"])).keys.size == 0
        assert link.sketch(batch_of([])).keys.size == 0
    assert MinHash().sketch(batch_of(["...", "!?"])).keys.size == 0


# ── exact ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@settings(max_examples=100, deadline=None)
@given(st.one_of(TEXTS, st.lists(TRICKY, max_size=8), st.lists(st.text("aA \t\n\u00a0\u3000é", max_size=6), max_size=8)))
def test_digests_are_equal_where_normal_texts_are(texts: list[str]) -> None:
    found = Exact().sketch(batch_of(texts))
    expected = [normal(t) for t in texts]
    assert found.rows.tolist() == [i for i, t in enumerate(expected) if t]
    for i, a in enumerate(expected):
        for j, b in enumerate(expected):
            assert bool((found.body[i] == found.body[j]).all()) == (a == b)


def test_exact_copies_whatever_their_case_blanks_and_composition(tmp_path: Path) -> None:
    texts = ["Straße  café\n", "STRASSE cafe\u0301", "other", "", "", " \n", "straße cafe"]
    view = deduped(tmp_path / "d", Corpus.from_texts(tmp_path / "c", texts, "s"), links=(Exact(),))
    assert view.edges().to_pylist() == [{"a": 0, "b": 1, "similarity": 1.0, "kind": "exact"}]
    assert normal("A\t b") == "a b" and len(view) == len(texts)
    assert Exact().verify(dict(enumerate(texts)), np.array([[0, 1], [0, 6]], np.uint64)).tolist() == [1.0, 0.0]


# ── the search ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_five_thousand_copies_of_a_page_are_linear_work_and_one_cluster(tmp_path: Path) -> None:
    texts = ["the same page " * 20] * 5000 + [" ".join(vocabulary_text(s, 60)) for s in range(3)]
    view = deduped(tmp_path / "d", Corpus.from_texts(tmp_path / "c", texts, "s"))
    for kind in ("exact", "minhash"):
        assert 4999 <= len(pairs_of(view, kind)) <= 3 * 5000
    sizes = [x for b in view.batches(("cluster.size",)) for x in b["cluster.size"].to_pylist()]
    assert sizes == [5000] * 5000 + [1] * 3


def test_two_families_in_one_big_bucket_stay_apart_and_whole() -> None:
    """Members alternate, so that neither the first nor the neighbour in order is a copy of most; the order of their bodies finds them."""
    generator = rng.rng(0, "families")
    family = generator.integers(0, 2, 400)
    centres = generator.integers(0, 1 << 16, (2, 256)).astype(np.uint16)
    noise = generator.random((400, 256)) < 0.04
    bodies = np.where(noise, generator.integers(0, 1 << 16, (400, 256)).astype(np.uint16), centres[family])
    parent = np.arange(400)
    for key in range(8):
        ((pairs, big),) = graph.candidates(np.full(400, key, np.uint64), np.arange(400), 10, bodies)
        assert big == 1 and len(pairs) <= 3 * 400
        a, b = graph.unpacked(pairs)
        good = MinHash().estimate(bodies[a], bodies[b]) >= 0.7
        assert (family[a[good]] == family[b[good]]).all()
        parent = components(400, np.concatenate([a[good], np.arange(400)]), np.concatenate([b[good], parent]))
    assert len(set(parent.tolist())) == 2


def test_small_buckets_give_all_pairs_and_big_ones_a_chain() -> None:
    keys, places = np.repeat(np.arange(3, dtype=np.uint64), [4, 1, 12]), np.concatenate([[2, 5, 5, 9], [1], np.arange(12)])
    ((pairs, big),) = graph.candidates(keys, places, 10)
    a, b = graph.unpacked(pairs)
    chain = {(i, i + 1) for i in range(11)} | {(0, i) for i in range(1, 12)}
    assert big == 1 and set(zip(a.tolist(), b.tolist())) == {(2, 5), (2, 9), (5, 9)} | chain
    assert not [*graph.candidates(keys[:0], places[:0], 10)] or not next(graph.candidates(keys[:0], places[:0], 10))[0].size


def test_shards_and_ranges_of_keys_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = [vocabulary_text(s % 60, 40 + s % 6) for s in range(150)]
    texts = [" ".join(edited(w, 45, i) if i % 3 else w) for i, w in enumerate(words)]
    whole = deduped(tmp_path / "one", Corpus.from_texts(tmp_path / "c1", texts, "s"))
    monkeypatch.setattr(artifacts, "SHARD_ROWS", 17)
    monkeypatch.setattr(graph, "KEYS", 100)
    monkeypatch.setattr(graph, "PAIRS", 8)
    monkeypatch.setattr(graph, "TEXTS", 3)
    parts = Corpus.from_texts(tmp_path / "c2", texts, "s")
    assert len(parts.files()) == 9
    monkeypatch.setattr(graph, "BATCH", 5)
    for kind in ("exact", "minhash"):
        assert len(pairs_of(whole, kind)) > 5 and pairs_of(deduped(tmp_path / kind, parts), kind) == pairs_of(whole, kind)
    order = rng.rng(0, "order").permutation(150)
    turned = pairs_of(deduped(tmp_path / "turned", Corpus.from_texts(tmp_path / "c3", [texts[i] for i in order], "s")), "minhash")
    back = {tuple(sorted((int(order[a]), int(order[b])))): s for (a, b), s in turned.items()}
    assert back == pairs_of(whole, "minhash")


def test_copies_across_shards_with_two_workers_give_the_same_bytes(tmp_path: Path) -> None:
    texts = [" ".join(vocabulary_text(s % 700, 12)) for s in range(1500)]
    corpus = Corpus.from_texts(tmp_path / "c", texts, "s")
    one = deduped(tmp_path / "one", corpus)
    ctx = Context.scratch(tmp_path / "two", docs=corpus)
    ctx.workers = 2
    two = Dedup(corpus=Input(stage="docs")).run(ctx)
    assert files_of(one.path) == files_of(two.path)
    assert pairs_of(one, "exact") == {(i, j): 1.0 for i in range(1500) for j in range(i + 1, 1500) if (j - i) % 700 == 0}


class SameStart(Link):
    """A link of one's own: only keys and verify."""

    kind: ClassVar[str] = "start"

    letters: int = 3

    @property
    def least(self) -> float:
        return 0.5

    def keys(self, batch: pa.RecordBatch) -> tuple[np.ndarray, np.ndarray]:
        found = [sum(map(ord, t[: self.letters])) for t in batch["text"].to_pylist()]
        return np.arange(len(found)), np.array(found, np.uint64)

    def verify(self, texts: Mapping[int, str], pairs: np.ndarray) -> np.ndarray:
        return np.array([float(texts[a][:3] == texts[b][:3]) for a, b in pairs.tolist()], np.float32)


class Wrong(SameStart):
    """A link that forgets a body."""

    def sketch(self, batch: pa.RecordBatch) -> Any:
        return super().sketch(batch)._replace(body=np.zeros((0, 1)))


def test_a_link_of_ones_own_needs_keys_and_verify(tmp_path: Path) -> None:
    corpus = Corpus.from_texts(tmp_path / "c", ["abc 1", "cba 2", "abc 3", "", "é"], "s")
    view = deduped(tmp_path / "d", corpus, links=({"kind": "tests.data.test_dedup:SameStart"},))
    assert pairs_of(view, "SameStart") == {(0, 2): 1.0} or pairs_of(view, "start") == {(0, 2): 1.0}
    with pytest.raises(UsageError, match="gave 0 bodies for 5 rows"):
        deduped(tmp_path / "e", corpus, links=(Wrong(),))


def test_texts_are_looked_up_by_document(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(artifacts, "SHARD_ROWS", 3)
    texts = ["zero", "", "two é", "three", "four", "five 日本", "six"]
    view = Corpus.from_texts(tmp_path / "c", texts, "s")
    places = np.array([1, 2, 5, 6])
    found = graph.Texts(view, places, tmp_path / "t")
    docs = view.docs()[places].tolist()
    assert list(found) == docs and [found[d] for d in docs] == [texts[i] for i in places]
    with pytest.raises(KeyError):
        found[0]


def test_odd_texts_and_an_empty_corpus(tmp_path: Path) -> None:
    odd = ["", "\x00", "a" * 10**6, "😀" * 50, "😀" * 50, "שלום עולם " * 9, "日" * 300, "日" * 300, "x\ny\n" * 999]
    found = pairs_of(deduped(tmp_path / "d", Corpus.from_texts(tmp_path / "c", odd, "s")), "minhash")
    assert found == {(3, 4): 1.0, (6, 7): 1.0}
    empty = deduped(tmp_path / "e", Corpus.from_texts(tmp_path / "n", [], "s"))
    assert len(empty) == 0 and empty.edges().num_rows == 0


# ── clusters and winners ──────────────────────────────────────────────────────────────────────────────────────────


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 30).flatmap(lambda n: st.tuples(st.just(n), st.lists(st.tuples(st.integers(0, n - 1), st.integers(0, n - 1))))))
def test_components_are_named_by_their_smallest_member(case: tuple[int, list[tuple[int, int]]]) -> None:
    count, edges = case
    name = list(range(count))
    for _ in range(count):
        for a, b in edges:
            name[a] = name[b] = min(name[a], name[b])
    found = components(count, np.array([a for a, _ in edges], np.int64), np.array([b for _, b in edges], np.int64))
    assert found.tolist() == name and found.dtype == np.int64


def rows(folder: Path, listed: list[tuple[str, str, str]]) -> Corpus:
    """(source, date, text) → a corpus."""
    table = shards.rows_to_table(
        [
            {"url": f"u{i}", "source": s, "date": d, "licence": "", "text": t, "provenance": "crawl", **shards.sizes(len(t.encode()), None)}
            for i, (s, d, t) in enumerate(listed)
        ],
        shards.TEXT,
    )
    shards.write(folder / "t.parquet", table)
    return Corpus.create(folder, [folder / "t.parquet"], [])


def winners(view: Corpus, order: str, rules: tuple[Rule, ...] = ()) -> list[int]:
    return np.flatnonzero(curation.decide(view, rules, order).kept).tolist()


def test_the_best_copy_wins_by_source_then_quality_then_date_then_number(tmp_path: Path) -> None:
    page = " ".join(vocabulary_text(0, 50))
    lone = " ".join(vocabulary_text(1, 50))
    listed = [("web", "2024-05-01", page), ("docs", "2020-01-01", page), ("web", "2025-05-01", page), ("docs", "2023-01-01", page)]
    listed += [("docs", "2023-01-01", page + " "), ("web", "", lone)]
    view = deduped(tmp_path / "d", rows(tmp_path / "c", listed))
    side = tmp_path / "d" / "data" / "q.parquet"
    shards.write(side, pa.table({"score": pa.array([9, 1, 8, 5, 5, 0], pa.float32())}), {"text": view.files()[0].digest})
    view = Corpus.with_columns(view, tmp_path / "d" / "data", [("quality", 1, {"score": "float32"}, [side])])
    rank = "case source when 'wiki' then 0 when 'docs' then 1 else 2 end"
    assert winners(view, f"{rank}, quality.score desc, date desc, doc") == [3, 5]
    assert winners(view, f"{rank}, quality.score, date desc, doc") == [1, 5]
    assert winners(view, "quality.score desc, doc") == [0, 5] and winners(view, "date desc, doc") == [2, 5]
    assert winners(view, f"{rank}, quality.score desc, doc desc") == [4, 5]
    assert winners(view, "doc", (Rule(name="many", keep="cluster.size >= 5"),)) == [0]
    assert winners(view, f"{rank}, doc", (Rule(name="old", keep="date < '2024' or source <> 'docs' or quality.score > 4"),)) == [1, 5]


def test_a_drop_order_of_sources_keeps_each_page_in_the_first_that_has_it(tmp_path: Path) -> None:
    pages = [vocabulary_text(i, 80) for i in range(6)]
    near = [" ".join(edited(p, 80, i)) for i, p in enumerate(pages)]
    plain = [" ".join(p) for p in pages]
    listed = [("crawl", "", t) for t in plain] + [("docs", "", t) for t in near[:4]] + [("wiki", "", t) for t in plain[:2]]
    view = deduped(tmp_path / "d", rows(tmp_path / "c", listed))
    assert winners(view, "case source when 'wiki' then 0 when 'docs' then 1 else 2 end, doc") == [4, 5, 8, 9, 10, 11]
    assert winners(view, "case source when 'crawl' then 0 else 1 end, doc") == [0, 1, 2, 3, 4, 5]


def test_clusters_are_columns_of_the_living_by_all_edges_so_far(tmp_path: Path) -> None:
    texts = ["a b c d e f"] * 3 + ["g h i j k l m"] * 2 + ["alone in the world"]
    first = deduped(tmp_path / "d", Corpus.from_texts(tmp_path / "c", texts, "s"), links=(Exact(),))

    def cluster(view: Corpus) -> Iterator[tuple[int | None, int | None]]:
        for b in view.batches(("cluster",), every=True):
            yield from ((c["id"], c["size"]) for c in b["cluster"].to_pylist())

    assert list(cluster(first)) == [(0, 3)] * 3 + [(3, 2)] * 2 + [(5, 1)]
    assert first.fields()["cluster"] == {"id": "int64", "size": "int32"}
    rule = (Rule(name="not0", keep="doc <> 0"), Rule(name="not3", keep="doc <> 3"))
    keep = curation.decide(first, rule, "doc")
    curation.write(first, tmp_path / "k", rule, "doc", keep)
    second = deduped(tmp_path / "e", Corpus(tmp_path / "k"), links=(MinHash(),))
    assert list(cluster(second)) == [(None, None), (1, 1), (None, None), (None, None), (4, 1), (5, 1)]
    assert sum(c["name"] == "cluster" for c in second.body["columns"]) == 1


def test_winners_may_be_repeated_by_the_copies_they_had(tmp_path: Path) -> None:
    texts = ["a b c d e f"] * 9 + ["g h i j k l m"] * 4 + ["alone in the world"] + ["n o p q r"] * 25
    plain = Corpus.from_texts(tmp_path / "c", texts, "s")
    view = deduped(tmp_path / "d", plain, links=(Exact(),))
    curation.write(view, tmp_path / "k", (), "doc", curation.decide(view, ()))
    left = Corpus(tmp_path / "k")

    def times(corpus: Corpus, **fields: float) -> list[int]:
        stage = Tokenize(tokenizer=Input(stage="t"), corpora=(Input(stage="c"),), **fields)  # type: ignore[arg-type]
        table = corpus.table(("text", "cluster.size"))
        return [stage.times(text, size) for text, size in zip(*(c.to_pylist() for c in table.columns))]

    assert times(left, repeat=0.5) == [3, 2, 1, 4] and times(left, repeat=1.0, most=1e9) == [9, 4, 1, 25]
    assert times(left, repeat=0.0) == [1, 1, 1, 1] and len(times(view, repeat=0.5)) == 39
    with pytest.raises(UsageError, match="cluster"):
        times(plain, repeat=0.5)


@pytest.mark.slow
def test_union_find_takes_five_million_edges_a_second() -> None:
    import time

    generator = rng.rng(0, "edges")
    a, b = generator.integers(0, 4_000_000, (2, 5_000_000))
    components(2, a[:0], b[:0])
    start = time.perf_counter()
    components(4_000_000, a, b)
    assert time.perf_counter() - start < 1.0
