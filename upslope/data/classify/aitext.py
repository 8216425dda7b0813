"""Triage of machine-written text: three signals of the text, a calibrated posterior, a prior by date, and a threshold from a target rate.

    ngrams   logit of a classifier of human against machine text
    ratio    log(H_human / H_machine): bits per byte under a language model of human text over those under one of machine text
    phrases  log(1 + occurrences of assistants' boilerplate)

    score = σ(a + Σ w_s z_s) at equal priors, z standardised, fitted on documents that neither the classifier nor the models saw (Platt
    scaling with several inputs);  logit posterior = logit score + logit prior(date);  prior = 0 before the cutoff

The threshold is the ⌈(n + 1)(1 − fpr)⌉-th smallest score of n human documents: whatever the distribution, a new human document like
these exceeds it with probability at most fpr. It is never below a score of ½, though.
Sources: Platt 1999; conformal quantile: Vovk, Gammerman, Shafer 2005; two models instead of one perplexity: Hans et al. 2024 (Binoculars;
theirs is a cross-entropy of the models on each other, which needs models of language as a whole).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from upslope.config import UsageError
from upslope.data.classify import lm
from upslope.data.classify.artifact import Model, Texts, buffers
from upslope.data.classify.heads import Head, Layout, Split, fit
from upslope.machine.rng import rng

SIGNALS = ("ngrams", "ratio", "phrases")
MACHINE = "machine"
HEAD = Head("author", "one", ("human", MACHINE))
DATE = re.compile(r"\d{4}-\d{2}-\d{2}")
F64 = NDArray[np.float64]


def is_before(date: str | None, cutoff: str) -> bool:
    """Whether a date, ISO 8601, is known and before the cutoff."""
    return bool(date and DATE.match(date) and date[:10] < cutoff)


class Detector:
    """model: n-gram classifier with head `HEAD`; human, machine: language models; body: cutoff, phrases, limit, prior, and, once
    fitted, coefficients {mean, scale, weight (3,), bias} and threshold."""

    def __init__(self, model: Model, human: lm.ByteLM, machine: lm.ByteLM, body: Mapping[str, Any]) -> None:
        self.model, self.human, self.machine, self.body = model, human, machine, dict(body)

    @classmethod
    def of(cls, body: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> Detector:
        """From what `arrays` gave and classifier.json."""
        human, machine = (lm.of(body["order"], *(arrays[f"{side}.{n}"] for n in lm.ByteLM._fields[1:6])) for side in ("human", "machine"))
        return cls(Model.of(body, arrays), human, machine, body)

    def arrays(self) -> dict[str, np.ndarray]:
        """What a file must hold."""
        sides = (("human", self.human), ("machine", self.machine))
        return {**self.model.arrays(), **{f"{side}.{n}": a for side, part in sides for n, a in part.arrays().items()}}

    @cached_property
    def _phrases(self) -> re.Pattern[bytes]:
        return re.compile(b"|".join(re.escape(p.encode()) for p in sorted(self.body["phrases"], key=len, reverse=True)))

    def signals(self, texts: Texts) -> F64:
        """(n, 3), finite; each row depends on its text alone."""
        data, offsets = buffers(texts)
        limit = self.body["limit"]
        p = self.model(texts)[:, HEAD.classes.index(MACHINE)].astype(np.float64)
        bits = [part.bits(data, offsets, limit) for part in (self.human, self.machine)]
        out = np.zeros((len(offsets) - 1, len(SIGNALS)))
        out[:, 0] = _logit(np.clip(p, 1e-6, 1 - 1e-6))
        out[:, 1] = np.log(np.maximum(bits[0], 1e-3) / np.maximum(bits[1], 1e-3))
        for i in range(len(out)):
            end = offsets[i + 1] if not limit else min(offsets[i + 1], offsets[i] + limit)
            out[i, 2] = math.log1p(sum(1 for _ in self._phrases.finditer(data[offsets[i] : end].tobytes().lower())))
        return out

    def fit(self, texts: Sequence[str], machine: NDArray[np.bool_]) -> None:
        """Learns the coefficients on documents that the signals were not learnt from; either kind weighs the same."""
        x = self.signals(list(texts))
        mean, scale = x.mean(axis=0), x.std(axis=0)
        scale = np.where(scale > 1e-9, scale, 1.0)
        z = ((x - mean) / scale).astype(np.float32)
        weight = np.where(machine, 0.5 / max(1, machine.sum()), 0.5 / max(1, (~machine).sum())) * len(x)
        split = Split(z, machine[:, None].astype(np.float32), weight[:, None].astype(np.float32))
        layout = Layout.of([Head(MACHINE, "any", (MACHINE,))])
        none = Split(z[:0], split.target[:0], split.weight[:0])
        found = fit(split, none, layout, hidden=0, l2=1e-2, iterations=200, patience=1, rng=rng(0, "classify.aitext"))
        self.body["coefficients"] = {
            "mean": mean.tolist(), "scale": scale.tolist(), "weight": found.matrix[:, 0].tolist(), "bias": float(found.bias[0]),
        }  # fmt: skip

    def combined(self, signals: F64) -> F64:
        """logit score of signals (n, 3): (n,)."""
        c = self.body["coefficients"]
        z = (signals - np.array(c["mean"])) / np.array(c["scale"])
        return np.asarray(c["bias"] + (z * np.array(c["weight"])).sum(axis=1))

    def posterior(self, logit: F64, dates: Sequence[str | None]) -> F64:
        """P(machine-written) given the text and the date, (n,)."""
        shifted = logit + math.log(self.body["prior"] / (1 - self.body["prior"]))
        early = np.array([is_before(d, self.body["cutoff"]) for d in dates], bool)
        return np.where(early, 0.0, _sigmoid(shifted))

    def read(self, texts: pa.Array, dates: Sequence[str | None]) -> dict[str, list[Any]]:
        """The columns of the annotator `aitext`; NULL where a text is empty."""
        known = np.diff(buffers(texts)[1]) > 0
        signals = self.signals(texts)
        logit = self.combined(signals)
        early = np.array([is_before(d, self.body["cutoff"]) for d in dates], bool)
        score = _sigmoid(logit)
        columns: dict[str, Any] = {
            "score": score,
            "posterior": self.posterior(logit, dates),
            "flagged": (logit > self.body["threshold"]) & ~early,
            "before": early,
            **{name: signals[:, i] for i, name in enumerate(SIGNALS)},
        }
        return {name: [v if k else None for v, k in zip(values.tolist(), known)] for name, values in columns.items()}


def threshold(human: F64, fpr: float) -> float:
    """The ⌈(n + 1)(1 − fpr)⌉-th smallest of n values. UsageError where n is too small for the rate."""
    rank = math.ceil((len(human) + 1) * (1 - fpr) - 1e-9)
    if rank > len(human):
        raise UsageError(
            f"form.fpr = {fpr}: {len(human)} human documents to choose the threshold by are too few; it takes {math.ceil(1 / fpr) - 1}\n"
            "way out: more human documents, a larger share `dev`, or a higher fpr"
        )
    return float(np.sort(human)[rank - 1])


def _sigmoid(x: F64) -> F64:
    return np.asarray(1 / (1 + np.exp(-np.clip(x, -500, 500))))


def _logit(p: F64) -> F64:
    return np.asarray(np.log(p / (1 - p)))
