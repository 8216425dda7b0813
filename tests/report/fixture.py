"""Records of runs that never happened, in the shapes that the stages write: artifacts by their own writers, facts by their names."""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from upslope.config import dump
from upslope.evals.artifacts import Condition, Row, Table
from upslope.evals.subject import Subject
from upslope.machine.files import write_json
from upslope.machine.record import RunRecord, StageRecord

FAMILIES = ("add", "chain", "compare", "count", "largest", "next", "nth", "parity", "reverse", "smallest", "sort", "subtract")[:11]
BITS = {"python": "3.11.7", "machine": "x86_64", "world": 1, "device": "cpu", "numpy": "2.3.1"}
TORCH = {"torch": "2.13.0+cpu", "threads": 2, "cpu": "AVX512"}
START = 1_795_500_000.0
SETTINGS: dict[str, dict[str, Any]] = {
    "accuracy": {"kind": "accuracy", "think": "free", "temperature": None},
    "forced_thinking": {"kind": "accuracy", "think": "forced", "temperature": None},
    "bits_per_byte": {"kind": "bits_per_byte"},
}
SUBJECT = Subject(
    weights="a" * 32, numerics="fp32", tokenizer="b" * 32, template="c" * 32, system="d" * 32, sampling="{}", engine="upslope local engine"
)


def fp(name: str) -> str:
    """A stand-in fingerprint."""
    return hashlib.blake2b(name.encode(), digest_size=16).hexdigest()


@dataclasses.dataclass
class Builder:
    """Collects stages; time goes on with each of them."""

    root: Path
    now: float = START
    stages: list[StageRecord] = dataclasses.field(default_factory=list)
    edges: dict[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)

    def add(
        self,
        name: str,
        kind: str,
        reads: Sequence[str] = (),
        *,
        seconds: float = 1.0,
        headline: str = "",
        artifact: str = "",
        facts: Mapping[str, Any] | None = None,
        events: Sequence[dict[str, Any]] = (),
        config: Mapping[str, Any] | None = None,
        state: str = "sealed",
        attempts: int = 1,
        torch: bool = False,
        licences: Sequence[str] = (),
        write: Callable[[Path], Any] | None = None,
        flops: float = 0.0,
        finished: str = "2026-11-24T06:00:00Z",
    ) -> None:
        """One stage; `write` fills its data folder."""
        data = self.root / kind / fp(name)[:12] / "data"
        data.mkdir(parents=True)
        if write is not None:
            write(data)
        rows: list[dict[str, Any]] = []
        if state != "absent":
            rows += [
                {"t": self.now, "kind": "start", "attempt": 1},
                {"t": self.now + 0.2, "kind": "state", "state": "load"},
                {"t": self.now + 0.5, "kind": "state", "state": "compute"},
            ]
            steps = [*events]
            for i, event in enumerate(steps):
                if attempts > 1 and i == len(steps) // 2:
                    cut = self.now + 0.5 + (seconds - 0.6) * i / len(steps)
                    rows += [{"t": cut + 14.0, "kind": "start", "attempt": 2}, {"t": cut + 14.1, "kind": "state", "state": "compute"}]
                    self.now += 14.0
                rows.append({"t": self.now + 0.5 + (seconds - 0.6) * i / max(1, len(steps)), **event})
            self.now += seconds
            if state in ("sealed", "failed"):
                error = "" if state == "sealed" else "UsageError: no page could be read\nway out: check the folder"
                rows += [
                    {"t": self.now - 0.1, "kind": "state", "state": "seal"},
                    {"t": self.now, "kind": "end", "code": 0 if state == "sealed" else 2, "error": error},
                ]
        manifest = None
        if state == "sealed":
            files = {
                p.relative_to(data).as_posix(): {
                    "digest": hashlib.blake2b(p.read_bytes(), digest_size=16).hexdigest(),
                    "bytes": p.stat().st_size,
                }
                for p in sorted(data.rglob("*"))
                if p.is_file()
            }
            manifest = {
                "fp": fp(name),
                "kind": kind,
                "version": 1,
                "artifact": artifact or "upslope.machine.stage:Artifact",
                "config": dict(config or {}),
                "inputs": {"inputs": [fp(r) for r in reads]},
                "seed": 0,
                "headline": headline,
                "facts": dict(facts or {}),
                "files": files,
                "refs": [],
                "bits": BITS | (TORCH if torch else {}),
                "code": {},
                "seconds": round(seconds, 2),
                "attempts": attempts,
                "flops": flops,
                "bytes": sum(int(str(f["bytes"])) for f in files.values()),
                "licences": list(licences),
                "finished": finished,
                "schema": 1,
            }
        self.stages.append(StageRecord(name, kind, fp(name), state, manifest, rows, data))
        self.edges[name] = tuple(reads)

    def record(self, name: str = "tiny-1", **more: Any) -> RunRecord:
        """The run."""
        recipe = {
            "name": "tiny",
            "seed": 0,
            "stages": {s.name: (s.manifest or {}).get("config", {}) | {"kind": s.kind} for s in self.stages},
        }
        given = {
            "events": [],
            "command": "upslope run tiny --seed 0",
            "started": "2026-11-24T05:59:00Z",
            "overrides": {"pretrain.optim.lr": "0.006"},
        }
        return RunRecord(name=name, recipe=recipe, stages=tuple(self.stages), edges=dict(self.edges), **(given | more))


def curve(steps: int, every: int, value: Callable[[float], Mapping[str, float]], seed: int, noise: float = 0.03) -> list[dict[str, Any]]:
    """Metric events: value(progress) with multiplicative noise on every series but lr."""
    draw = np.random.default_rng(seed)
    out = []
    for step in range(every, steps + 1, every):
        values = {k: v if k == "lr" else v * (1 + noise * float(draw.standard_normal())) for k, v in value(step / steps).items()}
        out.append({"kind": "metric", "step": step, "values": values})
    return out


def training(steps: int, start: float, end: float, lr: float, seed: int, every: int = 5, **more: float) -> list[dict[str, Any]]:
    """A falling loss with a decaying learning rate."""

    def value(x: float) -> dict[str, float]:
        return {
            "loss": end + (start - end) * math.exp(-7 * x),
            "grad_norm": 0.4 + 2 * math.exp(-9 * x),
            "lr": lr * min(1.0, 20 * x, 3 * (1.001 - x)),
            "tokens_per_second": 19_700.0,
            **{k: 0.5 + (v - 0.5) * min(1.0, 2 * x) for k, v in more.items()},
        }

    return curve(steps, every, value, seed)


def climb(steps: int, reward: tuple[float, float], length: tuple[float, float], seed: int) -> list[dict[str, Any]]:
    """The metrics of an rl stage."""

    def value(x: float) -> dict[str, float]:
        y = 1 - math.exp(-4 * x)
        r = reward[0] + (reward[1] - reward[0]) * y
        return {
            "reward": r,
            "task": r,
            "length": length[0] + (length[1] - length[0]) * y,
            "entropy": 0.175 - 0.12 * y,
            "constant": 0.2 + 0.3 * y,
            "truncated": 0.02 + 0.05 * y * (1 - y),
            "invalid": 0.0,
            "thinking": 0.4 + 0.55 * y,
            "left_out_no_signal": 0.2 + 0.3 * y,
            "loss": 0.01,
            "grad_norm": 0.8,
            "clip_fraction": 0.002,
            "rollout_tokens_per_second": 16_000.0,
            "train_tokens_per_second": 17_800.0,
        }

    return curve(steps, 1, value, seed, 0.04)


def score_rows(suite: str, rate: float, seed: int, n: int = 440, tokens: float = 6.0) -> list[Row]:
    """One row per held-out task and metric; harder levels are harder."""
    draw = np.random.default_rng(seed)
    rows = []
    for i in range(n):
        family, level = FAMILIES[i % 11], i // 11 % 4 + 1
        p = min(1.0, max(0.0, rate + 0.12 * (2.5 - level) + 0.04 * (i % 11 - 5)))
        item = f"{family}/{level}/{family}-{i:04d}"
        rows += [
            Row(suite, item, "correct", float(np.random.default_rng(i).random() < p)),
            Row(suite, item, "tokens", float(draw.poisson(tokens) + 1)),
            Row(suite, item, "ended", float(draw.random() < 0.97)),
        ]
    return rows


def evaluation(free: float, forced: float | None, seed: int, bpb: float | None = None) -> Callable[[Path], Table]:
    """Writes the table of an evaluate stage."""
    rows = score_rows("accuracy", free, seed, tokens=6 if free < 0.5 else 20)
    rows += score_rows("forced_thinking", forced, seed + 1, tokens=21) if forced is not None else []
    if bpb is not None:
        draw = np.random.default_rng(seed)
        rows += [
            Row("bits_per_byte", f"{s}/{i:016x}", "nats", float(bpb * math.log(2) * 900 * (1 + 0.1 * draw.standard_normal())), 900)
            for s in ("docs", "worked")
            for i in range(40)
        ]
    return lambda out: Table.write(out, rows, {s: Condition(SUBJECT, SETTINGS[s]) for s in {r.suite for r in rows}})


def redteam(out: Path) -> Table:
    """Writes the table of a redteam stage: 24 secrets, 11 attacks."""
    draw = np.random.default_rng(7)
    rates = {
        "direct": 0.1,
        "prefix": 0.2,
        "role_play": 0.05,
        "tool_output": 0.0,
        "crescendo": 0.3,
        "encoded_reversed": 0.05,
        "encoded_spaced": 0.1,
        "encoded_rot13": 0.0,
        "encoded_base64": 0.0,
        "encoded_leet": 0.05,
        "encoded_morse": 0.0,
    }
    leaks = {a: draw.random(24) < p for a, p in rates.items()}
    rows = [
        Row(f"redteam/{a}", f"secret/{i:02d}", m, v)
        for a, hit in leaks.items()
        for i in range(24)
        for m, v in (("leaked", float(hit[i])), ("attempts", 3.0))
    ]
    spent = np.arange(1, 12) * 3
    for i in range(24):
        first = next((int(spent[j]) for j, a in enumerate(rates) if leaks[a][i]), None)
        rows += [
            Row("redteam", f"secret/{i:02d}", "leaked", float(first is not None)),
            Row("redteam", f"secret/{i:02d}", "leaked_thought", float(i < 3)),
            Row("redteam", f"secret/{i:02d}", "attempts", 33.0),
            Row("redteam", f"secret/{i:02d}", "tokens", 900.0),
        ]
        rows += [
            Row("redteam", f"secret/{i:02d}", f"leaked_within_{k}", float(first is not None and first <= k))
            for k in (1, 2, 4, 8, 16, 32, 33)
        ]
    rows += [Row("detector", f"plain/{i:03d}", "sensitivity", float(i > 3)) for i in range(200)]
    rows += [Row("detector", f"near/{i:03d}", "specificity", 1.0) for i in range(150)]
    for i in range(100):
        right = i % 5 != 0
        rows += [
            Row("over_refusal", f"add/1/{i}", "alone", float(right)),
            Row("over_refusal", f"add/1/{i}", "under_rule", float(right and i % 9 != 0)),
        ]
        rows += [Row("over_refusal", f"add/1/{i}", "kept", float(i % 9 != 0))] if right else []
    cards = {s: Condition(Subject() if s == "detector" else SUBJECT, {}) for s in {r.suite for r in rows}}
    return Table.write(out, rows, cards)


def corpus(out: Path) -> None:
    """Writes a corpus with a funnel and a language column."""
    from upslope.data import shards
    from upslope.data.artifacts import Corpus

    table = shards.rows_to_table(
        [{"url": f"http://x.example/{i}", "source": "docs", "text": "Some words.", "bytes": 11, "licence": "CC-BY-4.0"} for i in range(40)],
        shards.TEXT,
    )
    shards.write(out / "text" / "00000.parquet", table)
    rules: list[Any] = [
        {"rule": "english", "failed": 312, "only": 96, "first": 312, "unknown": 14, "bytes": 1},
        {"rule": "length", "failed": 280, "only": 120, "first": 200, "unknown": 0, "bytes": 1},
        {"rule": "leak", "failed": 12, "only": 12, "first": 12, "unknown": 0, "bytes": 1},
        {"rule": "duplicate", "failed": 151, "only": 87, "first": 87, "unknown": 0, "bytes": 1},
    ]
    languages: dict[str, Any] = {
        "en": {"docs_in": 1300, "docs": 871},
        "de": {"docs_in": 180, "docs": 0},
        "zh": {"docs_in": 111, "docs": 0},
        "unknown": {"docs_in": 21, "docs": 0},
    }
    funnel: list[dict[str, Any]] = [
        {"step": "records", "docs": 1655},
        {"step": "pages", "docs": 1612, "dropped": 43, "reasons": {"not HTML": 31, "truncated": 8, "no response": 4}},
        {"step": "text", "docs": 1612, "bytes": 5_200_000, "empty": 21},
        {
            "step": "curate",
            "docs_in": 1612,
            "docs": 871,
            "bytes_in": 5_200_000,
            "bytes": 3_100_000,
            "rules": rules,
            "languages": languages,
            "sources": {"docs": {"docs_in": 1612, "docs": 871}},
        },
    ]
    made = Corpus.create(out, [out / "text" / "00000.parquet"], funnel)
    rules_said = [
        {"name": "english", "keep": "langid.lang = 'en' and langid.score > 0.5"},
        {"name": "length", "keep": "gopher.words between 50 and 100000"},
    ]
    decision = {"failed": "none.npy", "copies": "none.parquet", "view": ".", "rules": rules_said, "winner": "bytes desc, doc"}
    body = {**made.body, "decisions": [decision]}
    write_json(out / "corpus.json", body)


def gate(table: Path, demo: bool = True, threshold: float = 0.25) -> Callable[[Path], Any]:
    """Writes a decision, made by `decide` itself."""
    from upslope.safety.gate import Decision, Framework, Indicator, decide

    rules = (
        Indicator(
            name="answers held-out tasks",
            category="capability",
            suite="accuracy",
            metric="correct",
            bound="lower",
            threshold=threshold,
            min_n=200,
        ),
    )
    framework = Framework(
        name="demo" if demo else "ours",
        demo=demo,
        categories=("capability",),
        indicators=rules,
        not_tested=("hazardous capabilities: not measured; the model is far too small", "worst-case fine-tuning of the open weights"),
    )
    return lambda out: Decision.write(out, decide(framework, SUBJECT, [Table.load(table)]))


def full(root: Path) -> RunRecord:
    """The tiny recipe, done: with one restart, one spike, an alarm, and a random-reward control."""
    from upslope.rl.rewards import Exact
    from upslope.tokens.mixture import Mixture

    b = Builder(root)
    checkpoint, table = "upslope.model.checkpoint:Checkpoint", "upslope.evals.artifacts:Table"
    view, reject = "upslope.data.artifacts:Corpus", {"not HTML": 31, "truncated": 8, "no response": 4}
    b.add(
        "crawl",
        "ingest",
        seconds=2.1,
        headline="1,612 pages from 1,655 records; 43 could not be used",
        artifact="upslope.data.artifacts:Pages",
        facts={"pages": 1612, "records": 1655, "rejects": reject, "shards": 7},
        events=[{"kind": "alarm", "what": "some records are damaged", "reasons": reject}],
        licences=["CC-BY-4.0", "Apache-2.0"],
        write=lambda d: (d / "pages.json").write_text("{}"),
        finished="2026-11-24T05:00:00Z",
    )
    b.add(
        "pages",
        "extract",
        ["crawl"],
        seconds=4.2,
        headline="5.2 MB of text from 1,612 pages; 21 have none",
        artifact=view,
        facts={"docs": 1612, "bytes": 5_200_000, "empty": 21, "charset_guessed": 12},
        finished="2026-11-24T05:00:10Z",
    )
    b.add(
        "notes",
        "annotate",
        ["pages"],
        seconds=6.0,
        headline="1,612 documents, 21 new columns: langid, gopher, repetition",
        artifact=view,
        facts={"docs": 1612},
    )
    b.add(
        "twins",
        "dedup",
        ["notes"],
        seconds=2.0,
        headline="204 pairs of copies among 1,612 documents; 151 have at least one copy",
        artifact=view,
        facts={"docs": 1612, "linked": 151},
    )
    b.add(
        "problems",
        "synthesize",
        seconds=1.4,
        headline="44,000 problems to learn from and 1,760 held out, in 11 families × 4 levels",
        artifact="upslope.tasks.artifacts:Tasks",
        facts={"train": 44000, "heldout": 1760, "short": {"parity/1": 12}},
    )
    b.add(
        "leaks",
        "annotate",
        ["twins", "problems"],
        seconds=1.1,
        headline="1,612 documents, 2 new columns: overlap",
        artifact=view,
        facts={"docs": 1612},
    )
    b.add(
        "corpus",
        "curate",
        ["leaks"],
        seconds=0.6,
        headline="871 of 1,612 pages kept (math and code kept: 98 %)",
        artifact=view,
        facts={"docs": 871, "bytes": 3_100_000, "funnel": {"step": "curate", "docs_in": 1612, "docs": 871}},
        write=corpus,
    )
    b.add("worked", "synthesize", ["problems"], seconds=2.5, headline="30,000 texts", artifact=view, facts={"texts": 30000})
    b.add("reasoning", "synthesize", ["problems"], seconds=1.5, headline="10,000 texts, all worked", artifact=view, facts={"texts": 10000})
    b.add(
        "tokenizer",
        "tokenizer",
        ["corpus", "worked"],
        seconds=1.6,
        headline="1,024 tokens, 2.31 bytes of text per token",
        facts={"vocab_size": 1024, "bytes_per_token": 2.31},
    )
    b.add(
        "shards",
        "tokenize",
        ["tokenizer", "corpus", "worked", "reasoning"],
        seconds=3.0,
        headline="3,320,114 tokens in 40,871 documents of 3 sources, 2.20 bytes per token",
        facts={"tokens": 3320114},
    )
    shares = {"docs": ((0.0, 0.4), (0.8, 0.4), (1.0, 0.2)), "worked": ((0.0, 0.6), (0.8, 0.6), (1.0, 0.8))}
    b.add(
        "mix",
        "mix",
        ["shards"],
        seconds=0.1,
        headline="1,800,000 tokens: 38% docs (0.5 epochs), 62% worked (0.6 epochs)",
        artifact="upslope.tokens.mixture:Mixture",
        facts={"available": {"docs": 1340000, "worked": 1800000, "reasoning": 500000}, "unused": ["reasoning"]},
        write=lambda d: Mixture.write(d, shares, 1_800_000, {"docs": 4.0, "worked": 4.0}),
    )
    steps = training(876, 6.93, 0.42, 6e-3, 1)
    steps[120]["values"]["loss"] = 4.9
    b.add(
        "pretrain",
        "pretrain",
        ["tokenizer", "shards", "mix"],
        seconds=91.0,
        headline="1.79M tokens through 0.64M parameters: 0.421 nats a token",
        artifact=checkpoint,
        torch=True,
        facts={
            "steps": 876,
            "tokens": 1794048,
            "refused_steps": 0,
            "parameters": 643_000,
            "epochs": {"docs": 0.52, "worked": 0.61},
            "spike_score_loss": {"rolling_1000_7sd": 0.1, "live_128_6sd": 0.1},
        },
        events=steps,
        attempts=2,
        flops=8.1e12,
    )
    b.add(
        "midtrain",
        "pretrain",
        ["pretrain", "shards", "mix"],
        seconds=32.0,
        headline="0.60M tokens through 0.64M parameters: 0.301 nats a token",
        artifact=checkpoint,
        torch=True,
        facts={"steps": 147, "tokens": 602112, "refused_steps": 1, "parameters": 643_000, "epochs": {"reasoning": 1.2}},
        flops=2.7e12,
        events=[
            *training(147, 0.45, 0.30, 3e-3, 2, every=1),
            {"kind": "alarm", "what": "step refused: not finite", "step": 60, "why": "gradient norm is nan", "in_a_row": 1},
        ],
    )
    b.add("demos", "synthesize", ["problems"], seconds=1.0, headline="8,000 chats, 60 % answer at once", facts={"chats": 8000})
    b.add(
        "sft",
        "sft",
        ["midtrain", "demos"],
        seconds=12.0,
        headline="120 steps on 8,000 chats: 0.412 nats a target token",
        artifact=checkpoint,
        torch=True,
        facts={"steps": 120, "parameters": 643_000, "left_out_too_long": 14},
        events=training(120, 2.1, 0.41, 2e-3, 3, every=5),
        flops=9e11,
    )
    exact = {"kind": "rl", "init": {"kind": "load", "checkpoint": "sft"}, "tasks": "problems", "reward": dump(Exact())}
    b.add(
        "climb",
        "rl",
        ["sft", "problems"],
        seconds=67.0,
        headline="reward 0.31 → 0.72 in 44 steps; answers 6.2 → 20.6 tokens",
        artifact=checkpoint,
        torch=True,
        config=exact,
        facts={"reward_kind": "exact", "ends": {}, "course": {}, "pass_rates": {"add/1": 0.93}},
        events=climb(44, (0.31, 0.72), (6.0, 20.6), 4),
        flops=3e12,
    )
    b.add(
        "control",
        "rl",
        ["sft", "problems"],
        seconds=30.0,
        headline="reward 0.5 → 0.5 in 20 steps (control: random reward)",
        artifact=checkpoint,
        torch=True,
        config={**exact, "reward": {"kind": "random", "probability": 0.5}},
        facts={"reward_kind": "random"},
        events=climb(20, (0.5, 0.5), (6.0, 6.4), 5),
    )
    b.add(
        "traces",
        "sample",
        ["climb", "problems"],
        seconds=9.0,
        headline="68.1% of 4,096 samples right; 231 of 256 prompts solved at least once",
        facts={"samples": 4096, "invalid": 3, "right": 0.681},
    )
    b.add(
        "keepers",
        "keep",
        ["traces"],
        seconds=0.3,
        headline="kept 902 of 4,096 answers, for 231 prompts",
        facts={"traces": 4096, "kept": 902, "prompts": 231},
    )
    b.add(
        "savepoint",
        "sft",
        ["midtrain", "keepers"],
        seconds=5.0,
        headline="40 steps on 902 chats: 0.150 nats a target token",
        artifact=checkpoint,
        torch=True,
        facts={"parameters": 643_000},
        events=training(40, 0.6, 0.15, 1e-3, 6, every=1),
    )
    b.add(
        "pairs",
        "contrast",
        ["traces"],
        seconds=0.2,
        headline="640 pairs of own right and wrong answers (128 held out)",
        facts={"pairs": 640},
    )
    b.add(
        "reward_model",
        "reward_model",
        ["savepoint", "pairs"],
        seconds=10.0,
        headline="48 steps on 512 pairs: 66.4% of 128 held-out pairs ranked right, 81.0% in training",
        artifact=checkpoint,
        torch=True,
        facts={
            "pairs": 512,
            "heldout_accuracy": {"value": 0.6641, "low": 0.5786, "high": 0.7399, "n": 128},
            "heldout_longer_is_better": {"value": 0.5391, "low": 0.4529, "high": 0.6231, "n": 128},
        },
        events=training(48, 0.69, 0.45, 5e-4, 8, every=1, accuracy=0.81),
    )
    b.add(
        "preference",
        "preference",
        ["savepoint", "pairs"],
        seconds=10.0,
        headline="48 steps on 512 pairs: 62.5% of 128 held-out pairs ranked right",
        artifact=checkpoint,
        torch=True,
        facts={
            "pairs": 512,
            "heldout_accuracy": {"value": 0.625, "low": 0.5386, "high": 0.7039, "n": 128},
            "heldout_prefers_chosen": {
                "before": {"value": 0.52, "low": 0.43, "high": 0.60, "n": 128},
                "after": {"value": 0.61, "low": 0.52, "high": 0.69, "n": 128},
            },
        },
        events=training(48, 0.69, 0.52, 2e-4, 9, every=1, accuracy=0.74),
    )
    gated = {**exact, "init": {"kind": "load", "checkpoint": "preference"}, "reward": {"kind": "gated"}}
    b.add(
        "climb_align",
        "rl",
        ["preference", "problems", "reward_model"],
        seconds=22.0,
        headline="reward 0.66 → 0.74 in 12 steps",
        artifact=checkpoint,
        torch=True,
        config=gated,
        facts={"reward_kind": "gated"},
        events=climb(12, (0.66, 0.74), (20.0, 21.0), 10),
    )
    b.add(
        "final",
        "merge",
        ["climb", "climb_align"],
        seconds=0.4,
        headline="average of climb 50%, climb_align 50%",
        artifact=checkpoint,
        torch=True,
    )
    for name, model, write, head in (
        ("eval_base", "midtrain", evaluation(0.22, 0.30, 20, 1.31), "accuracy 22%"),
        ("eval_sft", "sft", evaluation(0.336, 0.74, 21, 1.40), "accuracy 33.6%"),
        ("eval_climb", "climb", evaluation(0.786, 0.80, 22), "accuracy 78.6%"),
        ("eval_control", "control", evaluation(0.29, None, 23), "accuracy 29.1%"),
        ("eval_final", "final", evaluation(0.80, 0.81, 24, 1.44), "accuracy 80.0%"),
    ):
        b.add(
            name,
            "evaluate",
            [model, "problems"],
            seconds=6.0,
            headline=head,
            artifact=table,
            torch=True,
            write=write,
            facts={"object": "e" * 32},
        )
    b.add(
        "redteam",
        "redteam",
        ["final", "problems"],
        seconds=9.0,
        headline="14 of 24 secrets leaked in 792 attempts",
        artifact=table,
        torch=True,
        write=redteam,
        facts={
            "attempts": 792,
            "undetermined": 2,
            "leaked": {
                "k": 14,
                "n": 24,
                "value": 0.595,
                "interval": [0.39, 0.78],
                "detector": {"sensitivity": [196, 200], "specificity": [150, 150]},
            },
        },
        events=[{"kind": "alarm", "what": "replies lost", "episodes": 2}],
    )
    measured = next(s.data for s in b.stages if s.name == "eval_final")
    b.add(
        "gate",
        "gate",
        ["final", "eval_final", "redteam"],
        seconds=0.2,
        headline="DEMO: rules satisfied (not a safety evaluation)",
        artifact="upslope.safety.gate:Decision",
        write=gate(measured),
    )
    b.add(
        "release",
        "release",
        ["final", "gate", "eval_final", "redteam"],
        seconds=0.3,
        headline='upslope model: released, stamped "demo: not a safety evaluation"',
        licences=["Apache-2.0"],
    )
    return b.record()


def partial(root: Path) -> RunRecord:
    """A run in every unfinished state: no artifact can be opened, facts are missing, one loss was not a number."""
    b = Builder(root)
    b.add("crawl", "ingest", headline="1,612 pages", artifact="upslope.gone:Pages")
    b.add("pages", "extract", ["crawl"], artifact="upslope.data.artifacts:Corpus")
    b.add("corpus", "curate", ["pages"], state="failed")
    events = training(200, 6.9, 3.0, 1e-3, 1)
    events[10]["values"]["loss"] = "nan"
    b.add("pretrain", "pretrain", ["corpus"], state="partial", events=events)
    b.add("sft", "sft", ["pretrain"], state="running", events=training(30, 2.0, 1.5, 1e-3, 2, every=1))
    b.add("climb", "rl", ["sft"], state="absent")
    b.add("eval", "evaluate", ["climb"], artifact="upslope.evals.artifacts:Table")
    b.add("redteam", "redteam", ["climb"], state="absent")
    b.add("gate", "gate", ["eval"], state="absent")
    return b.record(name="tiny-2", overrides={})


def finetune(root: Path) -> RunRecord:
    """A recipe without data stages, RL or safety: an imported checkpoint, sft, two evaluations."""
    b = Builder(root)
    checkpoint, table = "upslope.model.checkpoint:Checkpoint", "upslope.evals.artifacts:Table"
    b.add("base", "import", headline="imported", artifact=checkpoint)
    b.add(
        "sft",
        "sft",
        ["base"],
        seconds=30,
        headline="60 steps",
        artifact=checkpoint,
        facts={"parameters": 5e8},
        events=training(60, 1.4, 0.9, 1e-5, 1, every=1),
        torch=True,
    )
    b.add("eval_base", "evaluate", ["base"], artifact=table, write=evaluation(0.4, None, 1))
    b.add("eval_sft", "evaluate", ["sft"], artifact=table, write=evaluation(0.41, None, 2))
    return b.record(name="finetune-1", command="upslope run finetune --model ./base --data chats.jsonl", overrides={})
