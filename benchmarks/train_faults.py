"""Faults around training: damaged files, memory that runs out, kill -9. What is noticed, and what comes of the run.

    python benchmarks/train_faults.py [--only files,memory,kills] [--kills 20] [--json]

files: one damaged file of a saved state, over all kinds of damage. memory: passes of more than a quarter of the step run out of memory.
kills: SIGKILL at random instants of `fit`, which saves as often as it can; then it is left to end, and its bits are compared with those of
a run in peace. Flipped bits: `train_flips.py`.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from train_data import VOCAB, batch_of, card, rows_at

from upslope.machine.context import Context
from upslope.machine.events import Events, read
from upslope.model.config import Normal, dense
from upslope.model.init import initialise
from upslope.model.transformer import Transformer
from upslope.optim.config import Muon
from upslope.optim.schedule import Constant
from upslope.precision.config import Numerics
from upslope.train.batch import Batch
from upslope.train.config import Checks
from upslope.train.fit import History, fit
from upslope.train.goodput import measured
from upslope.train.integrity import digests
from upslope.train.losses import Imitate
from upslope.train.observers import Observer
from upslope.train.parts import step_of
from upslope.train.resume import latest, save_step
from upslope.train.skip import SkipRule
from upslope.train.trainer import Trainer


def data(step: int, rows: int = 8, length: int = 32) -> Batch:
    """The batch of a step."""
    return batch_of(rows_at(step, rows, length))


def fresh(numerics: Numerics = "bf16") -> Trainer:
    """A trainer of a model of 35k parameters."""
    config = dense(32, 2, 2, 1, 16, 64, context=64, vocab=VOCAB, init=Normal(std=0.05))
    model = initialise(Transformer(config), 0)
    return Trainer(model, Muon(lr=3e-3), numerics=numerics, patience=10**6)


def fitted(
    folder: Path, steps: int, observers: tuple[Observer, ...] = (), trainer: Trainer | None = None, **options: Any
) -> tuple[Trainer, History]:
    """`fit` in a folder, with all checks on."""
    ctx = Context.scratch(folder)
    ctx.events = Events(folder / "events" / f"{os.getpid()}-{time.time_ns()}.jsonl")
    trainer = trainer or fresh()
    trainer.events = ctx.events
    ctx.events.emit("start")
    given = {"batches": data, "checks": Checks(replay=50), "skip": SkipRule(), "save_seconds": 0.0, **options}
    history = fit(trainer, loss=Imitate(), schedule=Constant(warmup=10), steps=steps, ctx=ctx, observers=observers, **given)
    ctx.events.emit("end")
    return trainer, history


def alarms(folder: Path) -> list[str]:
    """What the alarms of a fit say."""
    return [r["what"] for r in read(folder / "events") if r["kind"] == "alarm"]


def bits(trainer: Trainer) -> dict[str, int]:
    """Digests of weights and optimizer state."""
    return {n: d for n, d in digests(trainer.state()).items() if not n.startswith("trainer.")}


def damaged(folder: Path, rng: random.Random) -> str:
    """Damages one file of the newest state; how."""
    files = sorted(f for f in folder.iterdir() if f.is_file())
    newest = max(step_of(f) for f in files)
    file = rng.choice([f for f in files if step_of(f) == newest])
    raw, kind = bytearray(file.read_bytes()), rng.choice(("truncated", "torn", "flipped", "lost", "exchanged"))
    if kind == "truncated":
        del raw[rng.randrange(len(raw)) :]
    elif kind == "torn":  # a page that never reached the disk
        start = rng.randrange(len(raw))
        raw[start : start + 4096] = bytes(len(raw[start : start + 4096]))
    elif kind == "flipped":
        raw[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)
    elif kind == "exchanged":
        raw = bytearray(rng.choice([f for f in files if f != file and f.suffix == file.suffix]).read_bytes())
    if kind == "lost":
        file.unlink()
    elif raw == file.read_bytes():
        return damaged(folder, rng)
    else:
        file.write_bytes(raw)
    return kind


def files(cases: int, folder: Path) -> dict[str, Any]:
    """Damaged states: whether each was passed over with an alarm, and the older one came back to the bit."""
    trainer, rng = fresh(), random.Random(3)
    kept: dict[str, int] = {}
    for k in (1, 2):
        trainer.step(data(k), Imitate(), 1e-3)
        save_step(folder / "whole", k, trainer.state())
        kept = kept or digests(trainer.state())
    by_kind: dict[str, int] = {}
    silent = lost = 0
    for case in range(cases):
        where = Path(shutil.copytree(folder / "whole", folder / f"{case}" / "work"))
        kind = damaged(where, rng)
        by_kind[kind] = by_kind.get(kind, 0) + 1
        found = latest(where, Events(where.parent / "events" / "e.jsonl"))
        right = found is None or (found.step == 1 and digests(found.tensors) == kept)
        silent += not right or not alarms(where.parent)
        lost += found is None
    return {"cases": cases, "by_kind": by_kind, "loaded silently": silent, "older state lost too": lost}


def memory(folder: Path) -> dict[str, Any]:
    """A fit whose first passes run out of memory, twice, beside one with enough."""

    def starved(limit: int) -> Trainer:
        trainer = fresh("fp32")
        real = trainer._out

        def out(part: Batch, *rest: Any) -> Any:
            if len(part) > limit:
                raise torch.OutOfMemoryError("injected: out of memory")
            return real(part, *rest)

        trainer._out = out  # type: ignore[method-assign, assignment]
        return trainer

    tokens = len(data(0))
    whole, short = starved(tokens), starved(tokens // 4)
    a = fitted(folder / "whole", 5, trainer=whole)[1].series["loss"]
    b = fitted(folder / "short", 5, trainer=short)[1].series["loss"]
    events = [r for r in read(folder / "short" / "events") if r["kind"] == "alarm"]
    return {
        "tokens": tokens,
        "micro_tokens": short.micro_tokens,
        "events": [[e["before"], e["after"]] for e in events],
        "first_loss_off": abs(a[0] - b[0]) / a[0],
        "last_loss_off": abs(a[-1] - b[-1]) / a[-1],
    }


def child(folder: Path, steps: int) -> None:
    """A fit that says where it is; killed by its parent."""

    def said(step: int) -> Batch:
        print(step, flush=True)
        return data(step)

    trainer, _ = fitted(folder, steps, batches=said)
    (folder / "done.json").write_text(json.dumps(bits(trainer)))


def kills(times: int, folder: Path, steps: int = 400) -> dict[str, Any]:
    """SIGKILL after a random number of steps and a random wait; then left to end. Bits, and where the time went."""
    rng, reached = random.Random(4), []
    wanted = bits(fitted(folder / "whole", steps)[0])
    command = [sys.executable, str(Path(__file__).resolve()), "--child", str(folder / "killed"), "--steps", str(steps)]
    for _ in range(times):
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        at = ""
        for _ in range(rng.randint(1, 30)):
            at = process.stdout.readline() or at
        time.sleep(rng.uniform(0, 0.02))
        process.send_signal(signal.SIGKILL)
        process.wait()
        reached.append(int(at or -1))
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    found = json.loads((folder / "killed" / "done.json").read_text())
    spent = measured(read(folder / "killed" / "events"))
    return {
        "kills": times,
        "at_steps": reached,
        "bit-identical": found == wanted,
        "alarms": sorted(set(alarms(folder / "killed"))),
        "goodput": {k: round(v, 4) for k, v in spent.shares.items()},
        "seconds": {k: round(v, 2) for k, v in spent.seconds.items()},
    }


def run(known: dict[str, Callable[[Path], dict[str, Any]]], only: str, quiet: bool) -> None:
    """Runs some of the experiments, each in a folder of its own, and prints what they found."""
    out: dict[str, Any] = {"card": card()}
    for name in only.split(","):
        with tempfile.TemporaryDirectory() as folder:
            began = time.monotonic()
            out[name] = known[name](Path(folder)) | {"took": round(time.monotonic() - began, 1)}
        if not quiet:
            print(name, json.dumps(out[name]), flush=True)
    if quiet:
        print(json.dumps(out, indent=1))


def main() -> None:
    """Runs what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="files,memory,kills")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--steps", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.child is not None:
        child(args.child, args.steps)
        return
    known: dict[str, Callable[[Path], dict[str, Any]]] = {
        "files": functools.partial(files, 100),
        "memory": memory,
        "kills": functools.partial(kills, args.kills),
    }
    run(known, args.only, args.json)


if __name__ == "__main__":
    main()
