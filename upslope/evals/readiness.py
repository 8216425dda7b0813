"""RL-readiness of a base model: do its samples hold something that reinforcement learning could reinforce?

From n graded samples of each of many tasks, c of them right: pass@k, the share of groups with both right and wrong answers (in the others
a group-relative advantage is zero), answers in the expected form, truncation, length, repetition, and groups that say one thing only.
The verdict compares these numbers with thresholds of the recipe; it says nothing about what RL will reach.
Sources: pass@k: Chen et al. 2021, arXiv 2107.03374; usable groups: DAPO, arXiv 2503.14476; why a base may not be ready: OctoThinker,
arXiv 2506.20512.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

import numpy as np
from pydantic import Field

from upslope.config import Config, UsageError
from upslope.evals.artifacts import Estimate, Row, estimate

if TYPE_CHECKING:
    from upslope.chat.messages import Message, Tokens, Tool
    from upslope.rl.protocol import Trace
    from upslope.tokens.tokenizer import Tokenizer

Share = Annotated[float, Field(ge=0, le=1)]
Status = Literal["met", "missed", "unclear"]


class Thresholds(Config):
    """What counts as ready; shares, None = not asked. Judgements of this package, no measured laws: set what your RL run needs.

    mixed: least share of groups with right and wrong answers. formatted: least share of answers in the expected form.
    truncated, repetition, collapsed: most of answers cut off, of repeated n-grams, of groups whose samples are all the same.
    """

    mixed: Share | None = 0.2
    formatted: Share | None = 0.5
    truncated: Share | None = 0.3
    repetition: Share | None = 0.3
    collapsed: Share | None = 0.3


AT_LEAST = ("mixed", "formatted")


class Sampled(NamedTuple):
    """One answer. tokens: sampled. ended: by the model itself. says: digest of its ids, equal for equal answers."""

    right: bool
    formatted: bool
    ended: bool
    tokens: int
    repetition: float
    says: str


def sampled(trace: Trace, marker: str, ngram: int) -> Sampled | None:
    """What is kept of a trace; None where it was not graded. formatted: it ended, and its answer begins with `marker`
    (where "": says anything)."""
    import hashlib

    from upslope.rl.objective import task_score

    score = task_score(trace)
    if not score.valid or not trace.length:
        return None
    ids = np.concatenate([n.sampled.ids for n in trace.nodes if n.sampled is not None]).astype(np.int64)
    content = trace.reply.content.strip()
    ended = not trace.done.truncated
    formatted = ended and bool(content) and content.startswith(marker)
    says = hashlib.blake2b(ids.tobytes(), digest_size=8).hexdigest()
    return Sampled(score.value >= 1, formatted, ended, len(ids), repeated(ids, ngram), says)


def repeated(ids: Sequence[int] | np.ndarray, n: int) -> float:
    """Share of the n-grams of a sequence that occurred in it before: 1 - different / all; 0 where it has none."""
    grams = [tuple(ids[i : i + n]) for i in range(len(ids) - n + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def pass_at(n: int, c: int, k: int) -> float:
    """Unbiased estimate of P(one of k samples is right) from c right ones of n: 1 - C(n - c, k) / C(n, k), as a product."""
    if not 1 <= k <= n or not 0 <= c <= n:
        raise ValueError(f"pass@{k} of {c} right in {n}: needs 1 <= k <= n and 0 <= c <= n")
    return 1 - math.prod((n - c - i) / (n - i) for i in range(k)) if c <= n - k else 1.0


def mixed_at(n: int, c: int, g: int) -> float:
    """Unbiased estimate of P(a group of g samples holds right and wrong ones): pass@g less P(all right) = C(c, g) / C(n, g)."""
    return pass_at(n, c, g) - (math.prod((c - i) / (n - i) for i in range(g)) if c >= g else 0.0)


def rows_of(suite: str, groups: Mapping[str, Sequence[Sampled]], ks: Sequence[int], group: int) -> list[Row]:
    """One row per task and metric: correct (pass@1), pass@k, mixed, none, every, formatted, truncated, tokens, repetition, collapsed.

    groups: graded samples by item. group: size of the groups that `mixed` speaks of. Tasks with too few graded samples are left out.
    """
    need = max([group, *ks])
    rows = []
    for item, said in groups.items():
        n, c = len(said), sum(s.right for s in said)
        if n < need:
            continue
        values = {"correct": c / n, "mixed": mixed_at(n, c, group), "none": float(c == 0), "every": float(c == n)}
        values |= {f"pass@{k}": pass_at(n, c, k) for k in ks}
        values |= {"formatted": _mean(s.formatted for s in said), "truncated": _mean(not s.ended for s in said)}
        values |= {"tokens": _mean(s.tokens for s in said), "repetition": _mean(s.repetition for s in said)}
        values["collapsed"] = float(len({s.says for s in said}) == 1)
        rows += [Row(suite, item, metric, float(v)) for metric, v in values.items()]
    if not rows:
        raise UsageError(f"readiness: no task has {need} graded samples\nway out: a smaller group, smaller ks, or a reward that can grade")
    return rows


def _mean(values: Any) -> float:
    return float(np.mean([float(v) for v in values]))


class Check(NamedTuple):
    """One threshold against its estimate. status: met or missed by the whole interval, else unclear."""

    name: str
    sign: Literal[">=", "<="]
    threshold: float
    estimate: Estimate
    status: Status


class Verdict(NamedTuple):
    """ready: every check met; not ready: one missed; unclear: neither, more tasks would tell."""

    verdict: Literal["ready", "not ready", "unclear"]
    checks: tuple[Check, ...]
    estimates: Mapping[str, Estimate]
    group: int

    def text(self) -> str:
        """The verdict in a sentence, with the number that it rests on and no claim beyond it."""
        e = self.estimates["mixed"]
        parts = [f"{self.verdict}: {_shown(e)} of {e.n} groups of {self.group} have both right and wrong answers"]
        parts += [f"{c.name} {_shown(c.estimate)}, wanted {c.sign} {c.threshold:.0%}" for c in self.checks if c.status != "met"]
        return "; ".join(parts)

    def lines(self) -> str:
        """All numbers, one a line."""
        wanted = {c.name: f"{c.sign} {c.threshold:.0%}: {c.status}" for c in self.checks}
        shown = [f"{name:<12}{_shown(e):<24}{wanted.get(name, '')}".rstrip() for name, e in self.estimates.items()]
        return "\n".join([self.text(), *shown])

    def json(self) -> dict[str, Any]:
        """Plain values."""

        def numbers(e: Estimate) -> dict[str, Any]:
            limits = {} if e.interval is None else {"low": round(e.interval.low, 5), "high": round(e.interval.high, 5)}
            return {"value": round(e.value, 5), "n": e.n, **limits}

        checks = [{"name": c.name, "sign": c.sign, "threshold": c.threshold, "status": c.status} for c in self.checks]
        return {
            "verdict": self.verdict,
            "group": self.group,
            "numbers": {k: numbers(e) for k, e in self.estimates.items()},
            "checks": checks,
        }


def judge(rows: Sequence[Row], thresholds: Thresholds, group: int) -> Verdict:
    """The verdict on rows of `rows_of`; intervals are over tasks."""
    by: dict[str, list[Row]] = {}
    for row in rows:
        by.setdefault(row.metric, []).append(row)
    estimates = {metric: estimate(members) for metric, members in by.items()}
    checks = []
    for name in type(thresholds).model_fields:
        bound = getattr(thresholds, name)
        if bound is not None:
            least = name in AT_LEAST
            checks.append(Check(name, ">=" if least else "<=", bound, estimates[name], _status(estimates[name], bound, least)))
    states = {c.status for c in checks}
    verdict: Any = "not ready" if "missed" in states else "unclear" if "unclear" in states else "ready"
    return Verdict(verdict, tuple(checks), estimates, group)


def _status(e: Estimate, bound: float, least: bool) -> Status:
    if e.interval is None:
        return "unclear"
    low, high = (e.interval.low, e.interval.high) if least else (-e.interval.high, -e.interval.low)
    bound = bound if least else -bound
    return "met" if low >= bound else "missed" if high < bound else "unclear"


def _shown(e: Estimate) -> str:
    if e.metric == "tokens":
        return f"{e.value:.1f}" + (f" [{e.interval.low:.1f}, {e.interval.high:.1f}]" if e.interval else "")
    return f"{e.value:.1%}" + (f" [{max(0.0, e.interval.low):.1%}, {min(1.0, e.interval.high):.1%}]" if e.interval else "")


class PlainText:
    """A renderer for models that never saw a chat: the prompt as lines of text, the answer from the last `marker` on.

    What stands before the marker counts as reasoning, as in the documents that worked solutions make.
    """

    def __init__(self, tokenizer: Tokenizer, marker: str) -> None:
        self.tokenizer, self.marker = tokenizer, marker

    def open(self, messages: Sequence[Message | Mapping[str, Any]], tools: Sequence[Tool] = (), think: bool = False) -> Tokens:
        """The contents, each with a line break. UsageError for tools or a forced thought: text has no place for them."""
        from upslope.chat.messages import Tokens, messages_of

        if tools or think:
            raise UsageError("form = 'text' has no tools and no think block\nway out: form = 'chat', or think = 'free'")
        return Tokens.of(self.tokenizer.encode("".join(f"{m.content}\n" for m in messages_of(messages))), "user")

    def extend(self, so_far: Tokens, messages: Sequence[Message | Mapping[str, Any]]) -> Tokens:
        """A line break, and further contents."""
        from upslope.chat.messages import Tokens

        return so_far + Tokens.of(self.tokenizer.encode("\n"), "user") + self.open(messages)

    def parse(self, ids: Sequence[int]) -> Message:
        """The text up to end-of-text, cut at the last marker."""
        from upslope.chat.messages import Message

        body = [int(i) for i in ids]
        body = body[: body.index(self.tokenizer.eos)] if self.tokenizer.eos in body else body
        text = self.tokenizer.decode(body)
        before, marker, after = text.rpartition(self.marker) if self.marker else ("", "", text)
        return Message("assistant", (marker + after).strip(), before.strip())
