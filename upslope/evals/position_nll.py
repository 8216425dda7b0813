"""NLL by position: how many nats a token costs as a function of how many tokens stand before it, on documents that are long enough."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar

import numpy as np
from pydantic import Field

from upslope.config import UsageError
from upslope.evals.artifacts import Estimate, Row, estimate
from upslope.evals.suites import Bench, Suite
from upslope.tokens.shards import HELDOUT

NLL, BEYOND = "nll", "beyond"


class PositionNll(Suite):
    """Mean nats a token in buckets of positions, log-spaced; position = tokens before it. Every bucket is of the same documents.

    length: tokens read of each document; shorter documents are left out. documents: most of each source. per_octave: buckets a doubling.
    trained: the length trained before an extension (0 = the checkpoint's context): where it is below `length`, rows of metric `beyond` say
    how much more a token costs past it than in the last bucket before it, document by document. Intervals are over documents.
    A model that uses its context falls with position and is flat past it; a rotation broken past its length jumps.
    Source: long-context NLL as a gate of extension: Llama 3, arXiv 2407.21783 §3.4.2; YaRN, arXiv 2309.00071 §4.3.
    """

    kind: ClassVar[str] = "position_nll"
    depends: ClassVar[tuple[str, ...]] = ("weights", "numerics", "tokenizer")

    length: Annotated[int, Field(ge=2)] = 512
    documents: Annotated[int, Field(ge=1)] = 32
    per_octave: Annotated[int, Field(ge=1)] = 1
    trained: Annotated[int, Field(ge=0)] = 0

    def run(self, bench: Bench) -> list[Row]:
        """Rows of metrics `nll` (item bucket/source/document) and `beyond`. UsageError where no document is long enough."""
        from upslope.evals.nll import document_nats

        texts = long_documents(bench, self.length, self.documents)
        nats = document_nats(
            bench.model,
            [ids for _, ids in texts],
            context=self.length,
            numerics=bench.deployment.numerics,
            check=lambda done, total: bench.check(done, total, "documents"),
        )
        costs = np.stack(nats)
        trained = self.trained or bench.checkpoint.config().context
        bounds = edges(self.length, self.per_octave, trained)
        rows = []
        for low, high in zip(bounds, bounds[1:], strict=False):
            means = costs[:, low:high].mean(1)
            rows += [Row(self.label, f"{bucket(low, high)}/{item}", NLL, float(v)) for (item, _), v in zip(texts, means, strict=True)]
        before = [b for b in bounds if b < trained]
        if before and trained < self.length:
            rise = costs[:, trained:].mean(1) - costs[:, before[-1] : trained].mean(1)
            rows += [Row(self.label, f"past {trained}/{item}", BEYOND, float(v)) for (item, _), v in zip(texts, rise, strict=True)]
        return rows


def long_documents(bench: Bench, length: int, per_source: int) -> list[tuple[str, np.ndarray]]:
    """(source/document, its first `length` tokens) of held-out documents that have as many, the first `per_source` of each source."""
    found: list[tuple[str, np.ndarray]] = []
    longest = 0
    for source, ids, docs, offsets in heldout(bench):
        sizes = np.diff(offsets) - 1  # end-of-text closes each document
        longest = max(longest, int(sizes.max(initial=0)))
        for i in np.flatnonzero(sizes >= length)[:per_source]:
            found.append((f"{source}/{int(docs[i]):016x}", np.asarray(ids[offsets[i] : offsets[i] + length], np.int64)))
    if len(found) < 2:
        raise UsageError(
            f"{len(found)} held-out documents have {length} tokens; an interval needs two; the longest has {longest}\n"
            "way out: a smaller length, or a larger holdout in the tokenize stage"
        )
    return found


def heldout(bench: Bench) -> list[tuple[str, np.ndarray, np.ndarray, np.ndarray]]:
    """(source, token ids, numbers of the documents, offsets of the documents) of each held-out source. UsageError where there is none."""
    found = []
    for shards in bench.shards:
        for name in shards.sources():
            if name.endswith(HELDOUT) and len(shards.docs(name)):
                found.append((name.removesuffix(HELDOUT), shards.tokens(name), shards.docs(name), shards.offsets(name)))
    if not found:
        raise UsageError(
            f"no held-out documents: no source of the shards ends in {HELDOUT!r}\n"
            "way out: a tokenize stage with holdout > 0, and `shards` set in the stage that measures"
        )
    return found


def edges(length: int, per_octave: int = 1, trained: int = 0) -> list[int]:
    """Bounds of the buckets of positions 1 ... length - 1: 1, then by factors of 2^(1 / per_octave); `trained` is one of them."""
    steps = range(math.ceil(math.log2(length) * per_octave) + 1)
    bounds = {round(2 ** (i / per_octave)) for i in steps} | {length} | ({trained} if 1 <= trained < length else set())
    return sorted(b for b in bounds if 1 <= b <= length)


def bucket(low: int, high: int) -> str:
    """The name of positions low ... high - 1; names sort as numbers do."""
    return f"{low:07d}-{high - 1:07d}"


def summary(rows: Sequence[Row]) -> dict[str, Any]:
    """Facts of one suite's rows: `buckets` [{from, to, nll, low, high, n}], and `beyond` {past, value, low, high, n} or None."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row.item.split("/")[0], []).append(row)
    found: dict[str, Any] = {"buckets": [], "beyond": None}
    for name, members in sorted(groups.items()):
        e = estimate(members, group=name)
        if members[0].metric == NLL:
            low, high = (int(x) for x in name.split("-"))
            found["buckets"].append({"from": low, "to": high, "nll": round(e.value, 5), **_limits(e)})
        elif members[0].metric == BEYOND:
            found["beyond"] = {"past": int(name.split()[1]), "value": round(e.value, 5), **_limits(e)}
    return found


def _limits(e: Estimate) -> dict[str, Any]:
    low, high = (e.interval.low, e.interval.high) if e.interval else (None, None)
    return {"low": None if low is None else round(low, 5), "high": None if high is None else round(high, 5), "n": e.n}


def text(found: Mapping[str, Any], width: int = 32) -> str:
    """The curve as lines of text: a bar from 0, the mean and its interval."""
    buckets = found["buckets"]
    top = max((b["nll"] for b in buckets), default=1.0) or 1.0
    lines = [f"nats a token by position, {buckets[0]['n'] if buckets else 0} documents, 95 % intervals"]
    for b in buckets:
        bar = "#" * max(0, round(width * b["nll"] / top))
        lines.append(f"{b['from']:>7}-{b['to']:<7} {bar:<{width}} {b['nll']:.3f} [{b['low']:.3f}, {b['high']:.3f}]")
    if found["beyond"]:
        e = found["beyond"]
        lines.append(f"past {e['past']} tokens: {e['value']:+.3f} [{e['low']:+.3f}, {e['high']:+.3f}] nats a token against just before")
    return "\n".join(lines)
