"""The model in memory, and the artifact `Classifier`: a folder with classifier.json, weights.safetensors, card.md and card.json."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from upslope.config import Config, UsageError, dump, validated
from upslope.data.classify import linear
from upslope.data.classify.config import Embedding, Ngrams
from upslope.data.classify.heads import Head, Layout, Weights
from upslope.data.classify.linear import F32, I64
from upslope.data.folding import U8, U32, table
from upslope.data.hashing import column
from upslope.machine.files import atomic, digest_file, read_json, write_json
from upslope.machine.stage import Artifact

if TYPE_CHECKING:
    from upslope.data.classify.aitext import Detector

FORMAT = 1
Texts: TypeAlias = Any
"""A pyarrow array of strings, or a sequence of str."""


def buffers(texts: Texts) -> tuple[U8, I64]:
    """(bytes, offsets (n + 1,)) of texts: the buffers of an Arrow array themselves, where it is one. NULL is "" here."""
    offsets, data = column(texts if isinstance(texts, pa.Array) else pa.array(list(texts), pa.large_string()))
    return data, offsets


def ngram_settings(config: Ngrams) -> tuple[U32, int, int, int, int, int]:
    """What the kernels of `linear` want to know: the folding of characters, grams, shortest and longest run of characters, bits, limit."""
    low, high = config.chars or (0, 0)
    return table(), config.grams, low, high, config.bits, config.limit


@dataclass(frozen=True)
class Model:
    """Texts → means of the heads. table: (2^bits, dim), empty for embeddings. Rows that training did not meet are zero."""

    config: Ngrams | Embedding
    heads: tuple[Head, ...]
    table: F32
    weights: Weights

    @cached_property
    def layout(self) -> Layout:
        """Where the heads lie among the outputs."""
        return Layout.of(self.heads)

    def features(self, texts: Texts) -> F32:
        """x (n, m); a row of zeros where a text has no features."""
        if isinstance(self.config, Embedding):
            listed = texts.to_pylist() if isinstance(texts, pa.Array) else list(texts)
            return np.ascontiguousarray(self.config.embedder([t or "" for t in listed]), np.float32)
        data, offsets = buffers(texts)
        return linear.pool_texts(data, offsets, *ngram_settings(self.config), self.table)

    def __call__(self, texts: Texts) -> F32:
        """(n, outputs): probabilities of classes, values of numbers."""
        return self.weights(self.features(texts), self.layout)

    def arrays(self) -> dict[str, np.ndarray]:
        """What a file must hold of it; the table without its rows of zeros."""
        rows = np.flatnonzero(self.table.any(axis=1)).astype(np.int32)
        return {"rows": rows, "table": self.table[rows], **self.weights._asdict()}

    def body(self) -> dict[str, Any]:
        """The rest, as JSON."""
        version = type(self.config.embedder).version if isinstance(self.config, Embedding) else Ngrams.features
        heads = [{"name": h.name, "kind": h.kind, "classes": list(h.classes)} for h in self.heads]
        return {"model": dump(self.config), "features": version, "heads": heads}

    @classmethod
    def of(cls, body: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> Model:
        """From what `body` and `arrays` gave. UsageError where its features are computed otherwise today."""
        config = validated(_Holder, {"model": body["model"]}).model
        version = type(config.embedder).version if isinstance(config, Embedding) else Ngrams.features
        if version != body["features"]:
            raise UsageError(
                f"this classifier was trained on features of version {body['features']}; this program computes version {version}\n"
                "way out: run its stage again"
            )
        table = np.zeros((0, 0), np.float32)
        if isinstance(config, Ngrams):
            table = np.zeros((1 << config.bits, arrays["table"].shape[1]), np.float32)
            table[arrays["rows"]] = arrays["table"]
        heads = tuple(Head(h["name"], h["kind"], tuple(h["classes"])) for h in body["heads"])
        return cls(config, heads, table, Weights(*(arrays[name] for name in Weights._fields)))


class _Holder(Config):
    model: Ngrams | Embedding


class Reading(NamedTuple):
    """label: the class, classes joined by ",", or the rounded level; score; bucket, 0 the lowest; each NULL where there is none."""

    label: list[str | None]
    score: list[float | None]
    bucket: list[int | None]


class Classifier(Artifact):
    """A trained classifier with its card. classifier.json names its form: labels, taxonomy or aitext."""

    @cached_property
    def body(self) -> dict[str, Any]:
        """What classifier.json says. UsageError if it is missing, or in a format of another version."""
        return read_body(self.path / "classifier.json")

    @cached_property
    def card(self) -> dict[str, Any]:
        """What was measured (card.json)."""
        found: dict[str, Any] = read_json(self.path / "card.json")
        return found

    @cached_property
    def arrays(self) -> dict[str, np.ndarray]:
        """The weights. UsageError if they are not those that classifier.json was written with."""
        from safetensors.numpy import load_file

        file = self.path / "weights.safetensors"
        if not file.is_file() or digest_file(file) != self.body["weights"]:
            raise UsageError(
                f"{file.name} of the classifier is missing or has changed since it was written\nway out: copy the folder whole"
            )
        found: dict[str, np.ndarray] = load_file(file)
        return found

    @cached_property
    def model(self) -> Model:
        """The trained model."""
        return Model.of(self.body, self.arrays)

    @cached_property
    def detector(self) -> Detector:
        """The detector of the form `aitext`."""
        from upslope.data.classify.aitext import Detector

        return Detector.of(self.body, self.arrays)

    @classmethod
    def write(cls, folder: Path, body: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> Classifier:
        """Writes classifier.json and weights.safetensors; equal values give equal bytes."""
        from safetensors.numpy import save

        with atomic(folder / "weights.safetensors") as file:
            file.write_bytes(save({k: np.ascontiguousarray(v) for k, v in sorted(arrays.items())}))
        write_json(folder / "classifier.json", {**body, "format": FORMAT, "weights": digest_file(folder / "weights.safetensors")})
        return cls(folder)

    def read(self, texts: Texts) -> Reading:
        """Labels, scores and buckets of texts, for the form `labels`."""
        x = self.model.features(texts)
        return readings(self.model.weights(x, self.model.layout), np.asarray(x.any(axis=1)), self.model.heads[0], self.body)


def read_body(file: Path) -> dict[str, Any]:
    """classifier.json, checked."""
    if not file.is_file():
        raise UsageError(f"{file.parent.name!r} holds no classifier: it has no classifier.json\nway out: a stage of kind 'classifier'")
    body: dict[str, Any] = read_json(file)
    if body.get("format") != FORMAT:
        raise UsageError(f"classifier.json is of format {body.get('format')!r}; this program reads {FORMAT}\nway out: run its stage again")
    return body


def readings(means: F32, known: NDArray[np.bool_], head: Head, body: Mapping[str, Any]) -> Reading:
    """Means (n, k) of one head → what the annotator gives. known: (n,), false where a text has no features."""
    score = scores(means, head, body)
    cuts = np.array(body["cuts"], np.float32)
    if head.kind == "number":
        low, high = body["range"]
        label: list[str | None] = [str(int(v)) for v in np.floor(np.clip(score, low, high) + 0.5)]
    elif head.kind == "any":
        label = [",".join(c for c, p in zip(head.classes, row) if p >= 0.5) or None for row in means.tolist()]
    else:
        label = [head.classes[i] for i in means.argmax(axis=1)]
    bucket = np.searchsorted(cuts, score, side="right").tolist()
    return Reading(
        [v if k else None for v, k in zip(label, known)],
        [v if k else None for v, k in zip(score.tolist(), known)],
        [b if k and len(cuts) else None for b, k in zip(bucket, known)],
    )


def scores(means: F32, head: Head, body: Mapping[str, Any]) -> F32:
    """(n,): the number, the probability of the positive class, or where none is named that of the likeliest."""
    if head.kind == "number":
        return np.ascontiguousarray(means[:, 0])
    if body["positive"]:
        return np.ascontiguousarray(means[:, head.classes.index(body["positive"])])
    return np.ascontiguousarray(means.max(axis=1))


@lru_cache(maxsize=8)
def opened(file: str, digest: str) -> Classifier:
    """The classifier whose classifier.json is `file` with that digest: loaded once in a process."""
    path = Path(file)
    if not path.is_file() or digest_file(path) != digest:
        raise UsageError(f"{path.name} has changed since this step was bound to it\nway out: run again")
    return Classifier(path.parent)
