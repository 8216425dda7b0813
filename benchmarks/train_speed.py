"""Speed of `fit` with every safety feature on beside a plain loop without any and beside transformers' Trainer, and what the safety costs.

    python benchmarks/train_speed.py [--repeats 5] [--seconds 20] [--only 1M] [--dtype bf16|fp32] [--threads 2] [--profile] [--json]

The same shapes, initial weights, tokens and optimizer; the first losses of all contenders are compared first. In each round all contenders
run in turn, in rotating order, for the same number of steps; ratios are taken within a round. On in `fit`: saves in the background (at
least one in each round, so more often than by default where rounds are short), digests of weights and optimizer before and after steps,
replayed steps, refusal of what is not finite, the skip rule, a stop rule, memory back-off, metrics, progress, and two observers, all at
default rates. Bars: 1.0 times the plain loop, 1.3 times transformers' Trainer (which needs accelerate); stalls, logging and observers
< 3 %. Absolute figures do not travel between machines; run it on a quiet one.

--profile: where the time of each contender goes, by torch.profiler, and of `fit` by function.
"""

from __future__ import annotations

import argparse
import cProfile
import io
import json
import math
import os
import pstats
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from train_data import VOCAB, batch_of, card, rows_at, spread
from train_plain import HFTrainer, Plain, PlainTheirs, accelerate_is_there

from upslope.machine.context import Context
from upslope.machine.events import Events, read
from upslope.model.config import ModelConfig, dense
from upslope.model.init import initialise
from upslope.model.transformer import Transformer
from upslope.optim.config import AdamW
from upslope.optim.schedule import Constant
from upslope.train.config import Checks, stop_rule
from upslope.train.fit import fit
from upslope.train.goodput import measured
from upslope.train.losses import Imitate
from upslope.train.observers import Logits, Weights
from upslope.train.skip import SkipRule
from upslope.train.trainer import Trainer

OPTIM = AdamW(lr=1e-3)
BARS = {"plain loop": 1.0, "HF Trainer": 1.3}


class Case(NamedTuple):
    """A model and the tokens of a step."""

    name: str
    config: ModelConfig
    rows: int
    length: int


CASES = (
    Case("llama-1M", dense(128, 5, 4, 2, 32, 384, context=512, vocab=VOCAB, qk_norm=False), 32, 128),
    Case("llama-6M", dense(256, 7, 8, 4, 32, 704, context=512, vocab=VOCAB, qk_norm=False), 16, 256),
)


class Timed(Events):
    """Events that add up the time they take."""

    seconds = 0.0

    def emit(self, kind: str, **fields: Any) -> None:
        """Appends one event."""
        began = time.perf_counter()
        super().emit(kind, **fields)
        self.seconds += time.perf_counter() - began


class Contender(Protocol):
    """Goes on from where it stopped."""

    def run(self, steps: int) -> tuple[float, list[float]]:
        """Seconds of some steps, and their losses."""
        ...


class Ours:
    """`fit` in a fresh folder each round, on the same trainer."""

    def __init__(self, model: Transformer, case: Case, half: bool, save_seconds: float) -> None:
        self.trainer = Trainer(model, OPTIM, numerics="bf16" if half else "fp32", micro_tokens=16384)
        self.case, self.save_seconds, self.done = case, save_seconds, 0
        self.overheads: list[dict[str, float]] = []
        self.goodput: dict[str, float] = {}

    def run(self, steps: int) -> tuple[float, list[float]]:
        """Seconds of a whole `fit`, from looking for a saved state to the last save on disk."""
        with tempfile.TemporaryDirectory() as folder:
            ctx = Context.scratch(folder)
            ctx.events = self.trainer.events = events = Timed(Path(folder) / "events" / "e.jsonl")
            ctx.events.emit("start")
            first = self.done
            began = time.perf_counter()
            history = fit(
                self.trainer,
                lambda k: batch_of(rows_at(first + k, self.case.rows, self.case.length)),
                Imitate(),
                Constant(),
                steps,
                ctx,
                (Weights(), Logits()),
                tokens=steps * self.case.rows * self.case.length,
                save_seconds=self.save_seconds,
                checks=Checks(),
                skip=SkipRule(),
                stop_if=[stop_rule("loss > 3 x best for 200 steps")],
            )
            took = time.perf_counter() - began
            ctx.events.emit("end")
            rows = read(Path(folder) / "events")
            said = [r for r in rows if r["kind"] == "overhead"][-1]
            self.overheads.append({"total": said["total"], **said["seconds"], "logging": events.seconds})
            self.goodput = measured(rows).seconds
        self.done += steps
        return took, history.series["loss"]


def contenders(case: Case, half: bool, save_seconds: float) -> dict[str, Contender]:
    """Each with the same initial weights."""

    def model() -> Transformer:
        return initialise(Transformer(case.config), 0)

    def rows(step: int) -> torch.Tensor:
        return rows_at(step, case.rows, case.length)

    found: dict[str, Contender] = {
        "ours": Ours(model(), case, half, save_seconds),
        "plain loop": Plain(model(), OPTIM, rows, half),
        "plain loop, transformers": PlainTheirs(model(), OPTIM, rows, half),
    }
    return found | ({"HF Trainer": HFTrainer(model(), OPTIM, rows, half)} if accelerate_is_there() else {})


def measure(case: Case, half: bool, repeats: int, length: float, least: int) -> dict[str, Any]:
    """One case: speeds, ratios by round, and what the safety cost. least: steps of a round; observers read every 100."""
    given = contenders(case, half, save_seconds=min(20.0, length / 2))
    firsts = {name: c.run(4) for name, c in given.items()}
    losses = {name: sum(v) / len(v) for name, (_, v) in firsts.items()}
    off = max(abs(v - losses["plain loop"]) for v in losses.values())
    assert off < 0.02, f"contenders do not learn alike: {losses}"
    for c in given.values():
        if isinstance(c, Plain):
            c.tune()
    steps = max(least, math.ceil(length / (given["plain loop"].run(4)[0] / 4)))
    ours = given["ours"]
    assert isinstance(ours, Ours)
    ours.overheads.clear()
    names, took, cpu = list(given), {name: [] for name in given}, {name: [] for name in given}  # type: ignore[var-annotated]
    for r in range(repeats):
        for name in names[r % len(names) :] + names[: r % len(names)]:
            began = time.process_time()
            took[name].append(given[name].run(steps)[0] / steps)
            cpu[name].append(time.process_time() - began)
    tokens = case.rows * case.length
    total = sum(o["total"] for o in ours.overheads)
    seconds = {k: sum(o.get(k, 0.0) for o in ours.overheads) for k in sorted({k for o in ours.overheads for k in o} - {"total"})}
    return {
        "case": case.name,
        "parameters": case.config.params(),
        "shape": [case.rows, case.length],
        "steps_a_round": steps,
        "passes_a_step": {name: c.parts for name, c in given.items() if isinstance(c, Plain)},
        "tokens_per_s": {name: spread([tokens / t for t in v]) for name, v in took.items()},
        "ours_over": {name: spread([b / a for a, b in zip(took["ours"], v)]) for name, v in took.items() if name != "ours"},
        "ours_over_in_cpu_time": {name: spread([b / a for a, b in zip(cpu["ours"], v)]) for name, v in cpu.items() if name != "ours"},
        "seconds": total,
        "by_category": {k: {"seconds": v, "share": v / total} for k, v in seconds.items()},
        "goodput_of_last_round": ours.goodput,
    }


def profile(case: Case, half: bool, steps: int = 10) -> dict[str, str]:
    """Where the time goes: operators of each contender, functions of `fit`."""
    out = {}
    for name, c in contenders(case, half, save_seconds=1e9).items():
        c.run(3)
        with torch.profiler.profile() as p:
            c.run(steps)
        out[name] = p.key_averages().table(sort_by="self_cpu_time_total", row_limit=15, max_name_column_width=45)
        if name == "ours":
            watch = cProfile.Profile()
            watch.runcall(c.run, steps)
            text = io.StringIO()
            pstats.Stats(watch, stream=text).sort_stats("cumulative").print_stats(r"upslope|xxh|torch/_tensor|autograd", 45)
            out["ours, by function"] = text.getvalue()
    return out


def line(row: dict[str, Any]) -> str:
    """A row as text."""
    parts = []
    for name, r in row["ours_over"].items():
        bar = BARS.get(name)
        mark = "" if bar is None else f" {'≥' if r['median'] >= bar else '< !'} {bar}"
        parts.append(f"{name} {r['median']:.3f} [{r['q1']:.3f}, {r['q3']:.3f}]{mark}")
    cost = ", ".join(f"{k} {v['seconds']:.2f} s = {100 * v['share']:.2f} %" for k, v in row["by_category"].items())
    rows, length = row["shape"]
    head = f"{row['case']:9} {rows}×{length}  {row['tokens_per_s']['ours']['median']:,.0f} tokens/s   ours / " + "   ".join(parts)
    cpu = "   ".join(f"{name} {r['median']:.3f}" for name, r in row["ours_over_in_cpu_time"].items())
    return f"{head}\n          in CPU time, ours / {cpu}\n          of {row['seconds']:.1f} s: {cost}"


def main() -> None:
    """All cases."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=20.0, help="of the plain loop in a round")
    parser.add_argument("--least", type=int, default=100, help="steps of a round")
    parser.add_argument("--only", default="", help="part of a case's name")
    parser.add_argument("--dtype", choices=("fp32", "bf16"), default="bf16")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(args.threads)
    about = card() | {"transformers": transformers.__version__, "dtype": args.dtype, "accelerate": accelerate_is_there()}
    half = args.dtype == "bf16"
    if not args.json:
        print(about)
    rows = []
    for case in (c for c in CASES if args.only in c.name):
        if args.profile:
            for name, text in profile(case, half).items():
                print(f"── {case.name}, {name}\n{text}")
            continue
        rows.append(measure(case, half, args.repeats, args.seconds, args.least))
        if not args.json:
            print(line(rows[-1]), flush=True)
    if args.json:
        print(json.dumps({"card": about, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
