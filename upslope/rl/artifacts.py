"""Traces on disk: one parquet file, one row a node, tokens as ragged arrays."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from upslope.config import UsageError, canonical_json
from upslope.machine.files import atomic
from upslope.machine.stage import Artifact
from upslope.rl.protocol import Done, Node, Score, Trace

if TYPE_CHECKING:
    from upslope.chat.messages import Tokens

FILE = "traces.parquet"
Which = Literal["best", "worst", "changed"]


class Example(NamedTuple):
    """Traces of one task, to be shown together; `str()` is for people. phases: when each was sampled."""

    phases: tuple[str, ...]
    traces: tuple[Trace, ...]

    def __str__(self) -> str:
        facts = self.traces[0].facts
        cell = f"{facts['family']} level {facts['level']:g}" if isinstance(facts, dict) and {"family", "level"} <= set(facts) else "task"
        lines = [f"{cell} · {self.traces[0].task}", *(f"  {m.role}: {m.content}" for m in self.traces[0].prompt)]
        for phase, trace in zip(self.phases, self.traces, strict=True):
            total = f"{trace.total.value:.3g}" if trace.total.valid else f"invalid ({trace.total.evidence})"
            lines.append(f"  {phase}: reward {total}, {trace.length} tokens, ended by {trace.done}")
            for node in trace.nodes:
                if node.sampled is not None:
                    thought = f"<think> {node.message.reasoning} </think>\n" if node.message.reasoning else ""
                    lines += [f"    {line}" for line in f"{thought}{node.message.content}".splitlines() or ["(nothing)"]]
        return "\n".join(lines)


@dataclass(frozen=True)
class Traces(Artifact):
    """`traces.parquet`: phase, trace, group, task, node, parent, edge, message (JSON), ids, role, trainable, and for sampled
    nodes stop, logprobs, raw, version; done, facts and scores (JSON) stand at a trace's first node.

    phase: when they were sampled, such as `before` and `after`.
    """

    @classmethod
    def write(cls, folder: Path, traces: Iterable[tuple[str, Trace]]) -> Traces:
        """Writes (phase, trace) in the given order; UsageError for a trace without nodes or an id that occurs twice in a phase."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        rows: list[dict[str, Any]] = []
        seen: set[tuple[str, str]] = set()
        for phase, trace in traces:
            if not trace.nodes:
                raise UsageError(f"trace {trace.id!r} has no nodes: nothing was said")
            if (phase, trace.id) in seen:
                raise UsageError(f"trace {trace.id!r} occurs twice in phase {phase!r}")
            seen.add((phase, trace.id))
            rows += [_row(phase, trace, i) for i in range(len(trace.nodes))]
        schema = _schema()
        columns = {name: pa.array([row[name] for row in rows], type=schema.field(name).type) for name in schema.names}
        with atomic(folder / FILE) as file:
            pq.write_table(pa.table(columns, schema=schema), file, compression="zstd", row_group_size=65536)
        return cls.load(folder)

    def read(self, phase: str | None = None) -> list[Trace]:
        """The traces of a phase (of all for None), in file order."""
        return [trace for p, trace in self.phased() if phase is None or p == phase]

    def phased(self) -> list[tuple[str, Trace]]:
        """All (phase, trace), in file order."""
        import pyarrow.parquet as pq

        file = self.path / FILE
        if not file.is_file():
            raise UsageError(f"{self.path.name!r} holds no traces: it has no {FILE}")
        found: list[tuple[str, Trace]] = []
        nodes: list[Node] = []
        rows = pq.read_table(file).to_pylist()
        for row, following in zip(rows, [*rows[1:], None], strict=True):
            nodes.append(_node(row))
            if row["node"] == 0:
                first = row
            if following is None or following["node"] == 0:
                scores = {k: Score(v["value"], v["valid"], v["evidence"]) for k, v in json.loads(first["scores"]).items()}
                done, facts = Done(first["done"]), json.loads(first["facts"])
                found.append((first["phase"], Trace(first["trace"], first["group"], first["task"], tuple(nodes), done, facts, scores)))
                nodes = []
        return found

    def samples(self, which: Which = "best", n: int = 5) -> list[Example]:
        """n examples for people: `best` or `worst` single traces by their score, ties by length, at most one per task; or
        `changed`: (before, after) of the tasks whose mean score moved most, each the trace nearest to its mean.

        `best` and `worst` look at the last phase. Invalid traces are left out.
        """
        phased = self.phased()
        phases = list(dict.fromkeys(p for p, _ in phased))
        by_phase = {p: [t for q, t in phased if q == p and t.total.valid] for p in phases}
        if which == "changed":
            if len(phases) < 2:
                raise UsageError("these traces have one phase; 'changed' compares two\nway out: 'best' or 'worst'")
            pairs = _changed(by_phase[phases[0]], by_phase[phases[-1]], n)
            return [Example((phases[0], phases[-1]), pair) for pair in pairs]
        if which not in ("best", "worst"):
            raise UsageError(f"samples({which!r}): 'best', 'worst' or 'changed'")
        sign = -1 if which == "best" else 1
        order = sorted(by_phase[phases[-1]] if phases else [], key=lambda t: (sign * t.total.value, -t.length, t.id))
        one_each: dict[str, Trace] = {}
        for trace in order:
            one_each.setdefault(trace.task, trace)
        return [Example((phases[-1],), (t,)) for t in list(one_each.values())[:n]]


def _changed(before: Sequence[Trace], after: Sequence[Trace], n: int) -> list[tuple[Trace, Trace]]:
    tasks: dict[str, tuple[list[Trace], list[Trace]]] = {}
    for side, traces in enumerate((before, after)):
        for t in traces:
            tasks.setdefault(t.task, ([], []))[side].append(t)
    moved: list[tuple[float, str, Trace, Trace]] = []
    for task, (old, new) in tasks.items():
        if old and new:
            (a, x), (b, y) = _typical(old), _typical(new)
            moved.append((-abs(y - x), task, a, b))
    return [(a, b) for _, _, a, b in sorted(moved, key=lambda m: m[:2])[:n]]


def _typical(traces: Sequence[Trace]) -> tuple[Trace, float]:
    """The trace nearest to the mean score, and that mean."""
    mean = float(np.mean([t.total.value for t in traces]))
    return min(traces, key=lambda t: (abs(t.total.value - mean), t.id)), mean


def _schema() -> Any:
    import pyarrow as pa

    text, floats, ints, bytes_ = pa.string(), pa.list_(pa.float32()), pa.list_(pa.int32()), pa.list_(pa.int8())
    return pa.schema(
        [
            ("phase", text),
            ("trace", text),
            ("group", text),
            ("task", text),
            ("node", pa.int32()),
            ("parent", pa.int32()),
            ("edge", text),
            ("message", text),
            ("ids", ints),
            ("role", bytes_),
            ("privilege", bytes_),
            ("trainable", pa.list_(pa.bool_())),
            ("stop", text),
            ("logprobs", floats),
            ("raw", floats),
            ("version", ints),
            ("done", text),
            ("facts", text),
            ("scores", text),
        ]
    )


def _row(phase: str, trace: Trace, index: int) -> dict[str, Any]:
    node = trace.nodes[index]
    t, s = node.tokens, node.sampled
    row: dict[str, Any] = {
        "phase": phase,
        "trace": trace.id,
        "group": trace.group,
        "task": trace.task,
        "node": index,
        "parent": node.parent,
        "edge": node.edge,
        "message": _text(node.message.to_json()),
        "ids": t.ids,
        "role": t.role,
        "privilege": t.privilege,
        "trainable": t.trainable,
        "stop": None,
        "logprobs": None,
        "raw": None,
        "version": None,
        "done": None,
        "facts": None,
        "scores": None,
    }
    if s is not None:
        row |= {"stop": str(s.stop), "logprobs": s.logprobs, "raw": s.raw, "version": s.version}
    if index == 0:
        row |= {"done": str(trace.done), "facts": _text(trace.facts), "scores": _text({k: v._asdict() for k, v in trace.scores.items()})}
    return row


def _node(row: dict[str, Any]) -> Node:
    from upslope.chat.messages import Message
    from upslope.generate.engine import Completion, Stop

    tokens = _tokens(row)
    sampled = None
    if row["stop"] is not None:
        raw = None if row["raw"] is None else np.asarray(row["raw"], np.float32)
        sampled = Completion(
            row["trace"], tokens.ids, Stop(row["stop"]), np.asarray(row["logprobs"], np.float32), raw, np.asarray(row["version"], np.int32)
        )
    return Node(row["parent"], row["edge"], Message.from_json(json.loads(row["message"])), tokens, sampled)


def _tokens(row: dict[str, Any]) -> Tokens:
    from upslope.chat.messages import Tokens

    return Tokens(
        np.asarray(row["ids"], np.int32),
        np.asarray(row["role"], np.int8),
        np.asarray(row["privilege"], np.int8),
        np.asarray(row["trainable"], np.bool_),
    )


def _text(value: Any) -> str:
    return canonical_json(value).decode()
