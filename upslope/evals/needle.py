"""Needle in a haystack, by tokens: a key and its value somewhere in filler text, the key again at the end, and the value to be said."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, NamedTuple, Self

import numpy as np
from pydantic import Field, model_validator

from upslope.config import UsageError
from upslope.evals.artifacts import Row, estimate
from upslope.evals.position_nll import heldout
from upslope.evals.suites import Bench, Suite
from upslope.machine.rng import rng

if TYPE_CHECKING:
    import torch

    from upslope.model.transformer import Transformer
    from upslope.precision.config import Numerics

FOUND, GUESSED, NATS_A_TOKEN, LIFT = "correct", "guessed", "value_nats", "lift"
PACK = 8192  # tokens a forward pass
TRIES = 200


class Needle(Suite):
    """Share of needles whose value the model's most likely tokens spell, by length of the text and depth of the needle.

    A text has `length` tokens: filler, the needle somewhere in it, and at the end the needle once more up to its value, which is scored.
    lengths; depths: 0 = at the beginning, 1 = just before the question. samples: texts a (length, depth). key, value: tokens of each.
    alphabet: text whose tokens keys and values are drawn from ("" = all tokens of the filler). form: the needle, with `{key}` and then
    `{value}`. Filler: held-out documents one after the other, no end-of-text between them; a text does not hold its key elsewhere.
    Controls, of the same text without its needle: `guessed` (right all the same), `lift` (nats a value token saved by the needle).
    Source: the test is Kamradt's (2023); synthetic keys and values: RULER, arXiv 2404.06654.
    """

    kind: ClassVar[str] = "needle"
    depends: ClassVar[tuple[str, ...]] = ("weights", "numerics", "tokenizer")

    lengths: Annotated[tuple[Annotated[int, Field(ge=8)], ...], Field(min_length=1)] = (128, 256, 512)
    depths: Annotated[tuple[Annotated[float, Field(ge=0, le=1)], ...], Field(min_length=1)] = (0.0, 0.25, 0.5, 0.75, 1.0)
    samples: Annotated[int, Field(ge=1)] = 10
    key: Annotated[int, Field(ge=1)] = 2
    value: Annotated[int, Field(ge=1)] = 1
    alphabet: str = ""
    form: str = "{key}{value}"

    @model_validator(mode="after")
    def _form(self) -> Self:
        if self.form.count("{key}") != 1 or self.form.count("{value}") != 1 or self.form.index("{key}") > self.form.index("{value}"):
            raise ValueError(f"form = {self.form!r}: write {{key}} once and, after it, {{value}} once")
        return self

    def run(self, bench: Bench) -> list[Row]:
        """Rows (item length/depth/number) of metrics `correct`, `guessed` (0 or 1), `value_nats` and `lift`."""
        filler = np.concatenate([np.asarray(ids, np.int64) for _, ids, _, _ in heldout(bench)])
        filler = filler[filler != bench.tokenizer.eos]
        encode = bench.tokenizer.encode
        start, middle = (encode(t) for t in self.form.partition("{value}")[0].split("{key}"))
        end = encode(self.form.partition("{value}")[2])
        alphabet = np.unique(encode(self.alphabet)) if self.alphabet else np.unique(filler)
        rows: list[Row] = []
        cells = [(length, depth) for length in self.lengths for depth in self.depths]
        for done, (length, depth) in enumerate(cells):
            bench.check(done, len(cells), "cells")
            draws = [rng(bench.seed, "needle", length, f"{depth:g}", i) for i in range(self.samples)]
            made = [haystack(filler, alphabet, g, length, depth, self.key, self.value, (start, middle, end)) for g in draws]
            sides = [said(bench.model, [getattr(h, s) for h in made], self.value, bench.deployment.numerics) for s in ("ids", "without")]
            for i in range(self.samples):
                item, (right, nats), (guess, bare) = f"{length:07d}/{depth:g}/{i:04d}", *((s[0][i], s[1][i]) for s in sides)
                values = {FOUND: float(right), GUESSED: float(guess), NATS_A_TOKEN: float(nats), LIFT: float(bare - nats)}
                rows += [Row(self.label, item, metric, value) for metric, value in values.items()]
        return rows


class Haystack(NamedTuple):
    """ids: a text with its needle, (length,); without: with further filler in the needle's place, as long. Both end in the value."""

    ids: np.ndarray
    without: np.ndarray


def haystack(
    filler: np.ndarray,
    alphabet: np.ndarray,
    g: np.random.Generator,
    length: int,
    depth: float,
    key: int,
    value: int,
    form: tuple[Sequence[int], Sequence[int], Sequence[int]] = ((), (), ()),
) -> Haystack:
    """A text of `length` tokens with a needle at a depth. form: ids before the key, between key and value, after the value.

    UsageError where the filler is too short, or holds every key.
    """
    start, middle, end = form
    ask = len(start) + key + len(middle) + value
    room = length - ask  # of filler and needle
    needle_size = ask + len(end)
    if room < needle_size + 1 or len(filler) < room:
        raise UsageError(
            f"needle: {length} tokens do not hold a needle and a question of {needle_size + ask}"
            if room < needle_size + 1
            else f"needle: texts of {length} tokens need {room} tokens of filler; the held-out documents have {len(filler)}"
        )
    begin = int(g.integers(0, len(filler) - room + 1))
    around = filler[begin : begin + room]
    k = next((k for _ in range(TRIES) if not _holds(around, k := g.choice(alphabet, key))), None)
    if k is None:
        raise UsageError(f"needle: no key of {key} tokens from an alphabet of {len(alphabet)} is new to the text\nway out: a longer key")
    others = np.setdiff1d(alphabet, k)  # a value that repeats its key would make the key ambiguous
    if not len(others):
        raise UsageError(f"needle: an alphabet of {len(alphabet)} tokens leaves none for the value\nway out: a larger alphabet")
    v = g.choice(others, value)
    question = np.array([*start, *k, *middle, *v], np.int64)
    needle = np.array([*question, *end], np.int64)
    kept = around[: room - needle_size]
    at = round(depth * len(kept))
    return Haystack(np.concatenate((kept[:at], needle, kept[at:], question)), np.concatenate((around, question)))


def _holds(text: np.ndarray, key: np.ndarray) -> bool:
    windows = np.lib.stride_tricks.sliding_window_view(text, len(key))
    return bool((windows == key).all(1).any())


def said(model: Transformer, texts: Sequence[np.ndarray], tail: int, numerics: Numerics = "fp32") -> tuple[np.ndarray, np.ndarray]:
    """Of the last `tail` tokens of each text: whether each is the most likely one (so that greedy decoding says them), (n,) bool, and their
    mean cost in nats, (n,) float64. Texts may be longer than the model's context."""
    import torch

    from upslope.precision.autocast import autocast

    device = next(model.parameters()).device
    right, nats = [], []
    with torch.no_grad(), autocast(numerics, device.type):
        for pack in _packs(texts, PACK):
            ids = torch.from_numpy(np.concatenate(pack)).to(device)
            sizes = torch.tensor([len(t) for t in pack])
            seg = torch.repeat_interleave(torch.arange(len(pack)), sizes).to(device)
            at: torch.Tensor = (sizes.cumsum(0)[:, None] - torch.arange(tail, 0, -1)).to(device)  # (n, tail)
            logits = model.logits(model(ids, seg)[at.flatten() - 1]).float()
            wanted = ids[at.flatten()]
            cost = torch.nn.functional.cross_entropy(logits, wanted, reduction="none").double()
            right.append((logits.argmax(-1) == wanted).view(-1, tail).all(1).cpu().numpy())
            nats.append(cost.view(-1, tail).mean(1).cpu().numpy())
    if not np.isfinite(np.concatenate(nats)).all():
        raise FloatingPointError("the model gives log-probabilities that are not finite")
    return np.concatenate(right), np.concatenate(nats)


def _packs(texts: Sequence[np.ndarray], tokens: int) -> list[list[np.ndarray]]:
    packs: list[list[np.ndarray]] = [[]]
    for t in texts:
        if packs[-1] and sum(map(len, packs[-1])) + len(t) > tokens:
            packs.append([])
        packs[-1].append(t)
    return packs


def summary(rows: Sequence[Row]) -> dict[str, Any]:
    """Facts of one suite's rows: `cells` and `lengths` [{length, depth, found, low, high, n, guessed, lift}], and `all`."""

    def of(members: Sequence[Row], **where: Any) -> dict[str, Any]:
        found, guessed, lift = (estimate([r for r in members if r.metric == m]) for m in (FOUND, GUESSED, LIFT))
        assert found.interval is not None
        numbers = {"found": found.value, "low": found.interval.low, "high": found.interval.high}
        more = {"guessed": guessed.value, "lift": lift.value}
        return {**where, **{k: round(v, 5) for k, v in numbers.items()}, "n": found.n, **{k: round(v, 5) for k, v in more.items()}}

    places: dict[tuple[int, float], list[Row]] = {}
    for row in rows:
        length, depth, _ = row.item.split("/")
        places.setdefault((int(length), float(depth)), []).append(row)
    lengths = sorted({length for length, _ in places})
    cells = [of(members, length=length, depth=depth) for (length, depth), members in sorted(places.items())]
    by_length = [of([r for (n, _), m in places.items() if n == length for r in m], length=length) for length in lengths]
    return {"cells": cells, "lengths": by_length, "all": of(rows)}


def text(found: Mapping[str, Any]) -> str:
    """The grid as lines of text: percent found by length and depth, and by length with its interval."""
    depths = sorted({c["depth"] for c in found["cells"]})
    cells = {(c["length"], c["depth"]): c for c in found["cells"]}
    lines = [f"needles found, percent, {found['cells'][0]['n']} a cell; columns: depth of the needle"]
    lines.append(f"{'tokens':>8} " + " ".join(f"{d:>5.0%}" for d in depths) + "   all, 95 % interval    without needle")
    for row in found["lengths"]:
        shown = " ".join(f"{100 * cells[row['length'], d]['found']:>5.0f}" for d in depths)
        limits = f"{row['found']:>4.0%} [{row['low']:.0%}, {row['high']:.0%}]"
        lines.append(f"{row['length']:>8} {shown}   {limits:<22} {row['guessed']:.0%}")
    return "\n".join(lines)
