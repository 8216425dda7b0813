"""Examples (collected, cleaned of contradictions, split by the hash of their text) and training."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from upslope.config import UsageError
from upslope.data.artifacts import Corpus
from upslope.data.classify import linear
from upslope.data.classify.artifact import Model, buffers, ngram_settings
from upslope.data.classify.config import Embedding, Labelled, Ngrams
from upslope.data.classify.heads import Head, Layout, Split, Weights, fit
from upslope.data.classify.linear import F32
from upslope.machine.rng import rng

TRAIN, DEV, TEST = range(3)
META = ("url", "source", "licence", "lang", "date")
Label = str | float | tuple[str, ...]


class Example(NamedTuple):
    """A labelled text. meta: the columns META of its document; hash: of its text, uniform in [0, 1)."""

    text: str
    label: Label
    meta: dict[str, str]
    hash: float


def text_hash(text: str, key: str = "upslope.classify") -> float:
    """A number in [0, 1) that depends on the text alone."""
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8, key=key.encode()).digest()
    return (int.from_bytes(digest, "little") >> 11) * 2.0**-53


def documents(
    corpus: Corpus, sources: Sequence[str] = (), limit: int = 0, column: str = ""
) -> list[tuple[str, Any, dict[str, str], float]]:
    """(text, value of the column, META, hash) of kept documents with text, in document order; the `limit` with the smallest hashes."""
    out = []
    for batch in corpus.batches(("text", *META, *([column] if column and column not in META else []))):
        rows = batch.to_pylist()
        for row in rows:
            if row["text"] and (not sources or row["source"] in sources):
                value = row[column] if column else None
                out.append((row["text"], value, {m: row[m] or "" for m in META}, text_hash(row["text"])))
    if limit and len(out) > limit:  # another hash than that of the split, or the sample would all fall on one side
        order = [text_hash(text, "upslope.classify.limit") for text, *_ in out]
        bar = sorted(order)[limit - 1]
        out = [row for row, h in zip(out, order) if h <= bar]
    return out


def labelled(corpus: Corpus, of: Labelled, target: str, ask: Callable[[list[str]], Sequence[Label | None]] | None) -> Iterator[Example]:
    """The examples of one `Labelled`. ask: the teacher's labels of texts, None where it gave none."""
    found = documents(corpus, of.sources, of.limit, of.column)
    if of.rubric:
        assert ask is not None
        values: Sequence[Any] = ask([text for text, *_ in found])
    else:
        values = [of.label or value for _, value, *_ in found]
    for (text, _, meta, h), value in zip(found, values, strict=True):
        if value is not None and (value != "" or target == "any"):
            yield Example(text, _label(value, target, of), meta, h)


def _label(value: Any, target: str, of: Labelled) -> Label:
    if target == "number":
        if isinstance(value, bool) or not isinstance(value, int | float) or not np.isfinite(value):
            raise UsageError(
                f"column {of.column!r} holds {value!r}, which is not a number\nway out: name a numeric column, or another target"
            )
        return float(value)
    if target == "any":
        return value if isinstance(value, tuple) else tuple(sorted({v.strip() for v in str(value).split(",") if v.strip()}))
    text = str(value)
    if "," in text:
        raise UsageError(f"column {of.column!r} holds {text!r}: a class must not contain a comma\nway out: target = 'any' takes several")
    return text


@dataclass(frozen=True)
class Examples:
    """Examples without repetitions. split: (n,) TRAIN, DEV or TEST; repeats: left out as copies of a text with the same label;
    conflicts: left out because equal texts had different labels."""

    rows: tuple[Example, ...]
    split: NDArray[np.int8]
    repeats: int
    conflicts: int

    @classmethod
    def of(cls, rows: Sequence[Example], dev: float, test: float) -> Examples:
        """Equal texts are one example; the hash of the text decides the split, so it never changes when examples are added."""
        seen: dict[str, Example] = {}
        at_odds: set[str] = set()
        repeats = 0
        for row in rows:
            first = seen.setdefault(row.text, row)
            if first is not row:
                repeats += first.label == row.label
                if first.label != row.label:
                    at_odds.add(row.text)
        kept = tuple(r for t, r in seen.items() if t not in at_odds)
        h = np.array([r.hash for r in kept])
        split = np.where(h < test, TEST, np.where(h < test + dev, DEV, TRAIN)).astype(np.int8)
        return cls(kept, split, repeats, sum(r.text in at_odds for r in rows))

    def part(self, *which: int) -> list[Example]:
        """The examples of splits, in order."""
        return [r for r, s in zip(self.rows, self.split) if s in which]


def head_of(rows: Sequence[Example], target: str, positive: str = "") -> Head:
    """The head for these labels: classes sorted by name. UsageError with fewer than two classes, or none that is `positive`."""
    if target == "number":
        if len({r.label for r in rows}) < 2:
            raise UsageError("all examples have the same number, so there is nothing to learn\nway out: add examples with others")
        return Head("value", "number", ("value",))
    names = sorted({n for r in rows for n in (r.label if isinstance(r.label, tuple) else (str(r.label),))})
    least = 2 if target == "one" else 1
    if len(names) < least:
        raise UsageError(
            f"the examples have {len(names)} class{'es' * (len(names) != 1)} ({', '.join(names) or 'none'}); {target!r} needs {least}\n"
            "way out: add examples with another label"
        )
    if positive and positive not in names:
        raise UsageError(f"positive = {positive!r}: no example has that label; the labels are {', '.join(names)}")
    return Head("label", "one" if target == "one" else "any", tuple(names))


def targets(rows: Sequence[Example], head: Head, balance: bool = False) -> tuple[F32, F32]:
    """(target (n, k), weight (n, 1)). Balanced weights are n / (classes · examples of the class), of mean 1; for `any` all are 1."""
    out = np.zeros((len(rows), len(head.classes)), np.float32)
    at = {c: i for i, c in enumerate(head.classes)}
    for i, row in enumerate(rows):
        if head.kind == "number":
            out[i, 0] = row.label
        else:
            out[i, [at[c] for c in (row.label if isinstance(row.label, tuple) else (str(row.label),))]] = 1
    weight = np.ones((len(rows), 1), np.float32)
    if balance and head.kind == "one":
        counts = out.sum(axis=0)
        weight[:, 0] = (len(rows) / (np.count_nonzero(counts) * np.maximum(counts, 1)))[out.argmax(axis=1)]
    return out, weight


class Labels(NamedTuple):
    """Texts with targets (n, k) and weights (n, heads)."""

    texts: list[str]
    target: F32
    weight: F32


def train(config: Ngrams | Embedding, heads: tuple[Head, ...], learn: Labels, dev: Labels, seed: int) -> tuple[Model, dict[str, Any]]:
    """(model, how training went). The same bits for the same config, texts, targets and seed.

    UsageError if there is nothing to learn from, or the loss is not finite.
    """
    if not learn.texts or not dev.texts:
        raise UsageError(
            f"{len(learn.texts)} examples to learn from and {len(dev.texts)} to stop by: both must be at least 1\n"
            "way out: give more examples, or other shares in dev and test"
        )
    if isinstance(config, Embedding):
        empty = Model(config, heads, np.zeros((0, 0), np.float32), packed_empty())
        parts = [Split(empty.features(p.texts), p.target, p.weight) for p in (learn, dev)]
        weights = fit(
            parts[0], parts[1], empty.layout, hidden=config.hidden, l2=config.l2, iterations=config.iterations,
            patience=config.patience, rng=rng(seed, "classify.hidden"),
        )  # fmt: skip
        mean = weights(parts[1].x, empty.layout)
        log = {"dev_loss": linear.loss(mean, dev.target, dev.weight, empty.layout.bounds, empty.layout.kinds)}
        return Model(config, heads, empty.table, weights), log
    return _train_ngrams(config, heads, learn, dev, seed)


def packed_empty() -> Weights:
    """Weights of a model that only computes features."""
    none = np.zeros((0, 0), np.float32)
    return Weights(none, np.zeros(0, np.float32), none, np.zeros(0, np.float32))


def _train_ngrams(config: Ngrams, heads: tuple[Head, ...], learn: Labels, dev: Labels, seed: int) -> tuple[Model, dict[str, Any]]:
    layout = Layout.of(heads)
    starts, ids, square = _bags(config, learn.texts)
    dev_starts, dev_ids, _ = _bags(config, dev.texts)
    n, outputs = len(learn.texts), learn.target.shape[1]
    table = np.zeros((1 << config.bits, config.dim or outputs), np.float32)
    rows = np.unique(ids)
    if config.dim:
        draws = rng(seed, "classify.table").random((rows.size, config.dim))
        table[rows] = ((2 * draws - 1) / config.dim).astype(np.float32)
    weights = packed_empty()._replace(matrix=np.zeros((config.dim, outputs), np.float32), bias=_start(learn, layout))
    best: tuple[float, Any, Any, int] | None = None
    losses: list[float] = []
    for epoch in range(config.epochs):
        order = rng(seed, "classify.order", epoch).permutation(n)
        linear.sgd(
            starts, ids, square, learn.target, learn.weight, layout.bounds, layout.kinds, order, table, weights.matrix, weights.bias,
            config.lr, epoch * n, config.epochs * n,
        )  # fmt: skip
        mean = weights(linear.pool(dev_starts, dev_ids, table), layout)
        losses.append(linear.loss(mean, dev.target, dev.weight, layout.bounds, layout.kinds))
        if not np.isfinite(losses[-1]):
            raise UsageError(f"model.lr = {config.lr}: the loss is no longer finite in epoch {epoch + 1}\nway out: a smaller lr")
        if best is None or losses[-1] < best[0]:
            best = losses[-1], table[rows], weights._replace(matrix=weights.matrix.copy(), bias=weights.bias.copy()), epoch
        elif epoch - best[3] >= config.patience:
            break
    assert best is not None
    table[rows] = best[1]
    return Model(config, heads, table, best[2]), {"dev_loss": best[0], "epochs": len(losses), "best_epoch": best[3] + 1}


def _bags(config: Ngrams, texts: list[str]) -> tuple[linear.I64, linear.I32, F32]:
    data, offsets = buffers(texts)
    found: tuple[linear.I64, linear.I32, F32] = linear.bags(data, offsets, *ngram_settings(config))
    return found


def _start(learn: Labels, layout: Layout) -> F32:
    """The bias to start from: the mean of each number, so that the rate does not depend on its offset; 0 for classes."""
    bias = np.zeros(learn.target.shape[1], np.float32)
    for h, kind in enumerate(layout.kinds):
        if kind == linear.NUMBER:
            w = learn.weight[:, h]
            bias[layout.bounds[h]] = (w * learn.target[:, layout.bounds[h]]).sum() / max(w.sum(), 1e-9)
    return bias


def label_counts(rows: Sequence[Example]) -> dict[str, int]:
    """How many examples have each label; numbers by their nearest whole number."""
    names: Counter[str] = Counter()
    for r in rows:
        if isinstance(r.label, float):
            names[str(int(np.floor(r.label + 0.5)))] += 1
        else:
            names.update(r.label if isinstance(r.label, tuple) else (r.label,))
    return dict(sorted(names.items()))
