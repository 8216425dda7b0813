"""What emulated number formats, Muon and QK-Clip do to learning: small models on real text, the same seeds and batches in all arms.

    python benchmarks/train_learning.py [--only precision,muon,clip] [--scale 1] [--store FOLDER] [--json]

precision: FP8 by DeepSeek-V3's recipe and NVFP4 with its layer rule, both emulated, beside bf16, and a control: bf16 from initial weights
moved by one unit in the last place. Warm-up is long and the rate low: where training is near its edge, any change in the first steps leads
to losses some per cent apart, up or down, and says nothing about formats. The gap is that of the mean training loss over the last fifth of
the steps; where the control is too noisy to judge by (>= .12 %), all arms are run for twice the steps.
muon: Muon and AdamW, each at the best of a grid of learning rates that is extended until the best is not at its edge, then with more seeds.
The ratio is the share of AdamW's tokens at which Muon's smoothed loss reaches AdamW's final one, with a bootstrap interval over seeds.
clip: three times too high a learning rate, with and without QK-Clip: the largest attention logit after clipping begins.
Every arm is written to the store as soon as it is done, and is not run again.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from train_data import VOCAB, batch_of, card, model_1m, rows_at

from upslope.model.config import ModelConfig, dense
from upslope.model.init import initialise
from upslope.model.transformer import Transformer
from upslope.optim.config import AdamW, Muon, QKClip
from upslope.optim.schedule import LinearToZero
from upslope.precision.config import Emulated, Fp8V3, NvFp4
from upslope.train.hooks import Clipping, Emulation, Hook
from upslope.train.losses import Imitate
from upslope.train.trainer import Trainer

GAP, CONTROL = 0.0025, 0.0012
TAU = 50.0


def ulp(model: torch.nn.Module, seed: int) -> None:
    """Moves every weight to one of its two neighbours in float32."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            up = torch.rand(p.shape, generator=generator) < 0.5
            p.copy_(torch.nextafter(p, torch.where(up, torch.inf, -torch.inf)))


def trained(
    config: ModelConfig,
    optim: AdamW | Muon,
    *,
    steps: int,
    rows: int,
    seed: int = 0,
    precision: Emulated | None = None,
    tau: float | None = None,
    perturbed: bool = False,
    warmup: float = 0.05,
) -> dict[str, Any]:
    """One arm: losses by step, and the largest attention logits where `tau` is given; a tau of infinity only watches."""
    model = initialise(Transformer(config), seed)
    if perturbed:
        ulp(model, seed)
    hooks: list[Hook] = [] if precision is None else [Emulation(model, precision)]
    if tau is not None:
        hooks.append(Clipping(model, QKClip(tau=tau)))
    trainer, schedule = Trainer(model, optim, numerics="bf16", hooks=hooks), LinearToZero(warmup=warmup)
    losses, logits, began = [], [], time.monotonic()
    for step in range(steps):
        report = trainer.step(batch_of(rows_at(step, rows, seed=seed)), Imitate(), optim.lr * schedule.at(step, steps))
        losses.append(report.loss)
        if tau is not None:
            logits.append(report.sums["max_logit"])
    took = time.monotonic() - began
    return {"losses": losses, "logits": logits, "refused": trainer.refused, "seconds": took, "parameters": config.params()}


class Store:
    """Results of arms by name, as files; or in memory alone."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)

    def get(self, name: str, run: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The arm's result; run where it is not known."""
        file = None if self.folder is None else self.folder / f"{name}.json"
        if file is not None and file.is_file():
            found: dict[str, Any] = json.loads(file.read_text())
            return found
        found = run()
        if file is not None:
            file.write_text(json.dumps(found))
        return found


def tail(losses: Sequence[float], share: float = 0.2) -> float:
    """Mean of the last share of the steps."""
    return float(np.mean(losses[-max(1, round(share * len(losses))) :]))


def precision(store: Store, scale: float) -> dict[str, Any]:
    """Gaps of the arms to bf16, relative, at the first number of steps at which the control is quiet enough."""
    optim, rows, steps = AdamW(lr=1e-3), 16, max(20, round(400 * scale))
    arms: dict[str, dict[str, Any]] = {
        "bf16": {},
        "control": {"perturbed": True},
        "fp8_v3 emulated": {"precision": Fp8V3()},
        "nvfp4 emulated": {"precision": NvFp4()},
    }
    out: dict[str, Any] = {"rows": rows, "lr": optim.lr, "seed": 0, "tried": []}
    for attempt in range(2):
        n = steps * 2**attempt
        found: dict[str, dict[str, Any]] = {}

        def run(name: str, n: int = n, found: dict[str, dict[str, Any]] = found) -> float:
            key = f"precision-{name.split()[0]}-{optim.lr:g}-{n}"
            found[name] = store.get(key, lambda: trained(model_1m(), optim, steps=n, rows=rows, warmup=0.2, **arms[name]))
            return tail(found[name]["losses"]) / tail(found["bf16"]["losses"]) - 1

        run("bf16")
        gaps = {"control": run("control")}
        if abs(gaps["control"]) < CONTROL or attempt == 1:
            gaps |= {name: run(name) for name in arms if name not in ("bf16", "control")}
        row = {"steps": n, "tokens": n * rows * 128, "gaps": gaps, "bf16": tail(found["bf16"]["losses"])}
        row["windows"] = windows(found)
        out["tried"].append(row)
        if "fp8_v3 emulated" in gaps and (attempt == 1 or good(gaps)):
            break
    out |= {"gaps": gaps, "steps": n, "parameters": found["bf16"]["parameters"], "good": good(gaps)}
    return out


def good(gaps: dict[str, float]) -> bool:
    """Whether FP8 is close, beside a control that is closer."""
    return abs(gaps["fp8_v3 emulated"]) < GAP and abs(gaps["control"]) < CONTROL


def windows(found: dict[str, dict[str, Any]], parts: int = 10) -> dict[str, list[float]]:
    """Gaps to bf16 in each tenth of the steps."""
    base = [float(np.mean(c)) for c in np.array_split(found["bf16"]["losses"], parts)]
    return {
        name: [float(np.mean(c)) / b - 1 for c, b in zip(np.array_split(arm["losses"], parts), base)]
        for name, arm in found.items()
        if name != "bf16"
    }


def small(qk_norm: bool = True) -> ModelConfig:
    """0.38M parameters."""
    return dense(96, 3, 3, 3, 32, 256, context=512, vocab=VOCAB, qk_norm=qk_norm)


def share_of_tokens(slow: Sequence[float], quick: Sequence[float], window: int = 20) -> float:
    """The share of the first run's steps at which the second's smoothed loss reaches the first's final one; above 1: not reached."""

    def smooth(x: Sequence[float]) -> np.ndarray:
        return np.convolve(x, np.ones(window) / window, "valid")

    a, b = smooth(slow), smooth(quick)
    reached = np.nonzero(b <= a[-1])[0]
    return float(reached[0] + window) / len(slow) if len(reached) else math.inf


def muon(store: Store, scale: float) -> dict[str, Any]:
    """Tuned learning rates, and the ratio by seed."""
    steps, rows, seeds = max(40, round(300 * scale)), 16, (0, 1, 2)

    def of(kind: str, lr: float, seed: int) -> dict[str, Any]:
        optim = Muon(lr=lr, weight_decay=0.1) if kind == "muon" else AdamW(lr=lr, weight_decay=0.1)
        return store.get(f"{kind}-{steps}-{lr:g}-{seed}", lambda: trained(small(), optim, steps=steps, rows=rows, seed=seed))

    tuned, grids = {}, {}
    for kind in ("adamw", "muon"):
        grid = [2e-3 * 2**i for i in (0, 1, 2)]
        while True:
            finals = {lr: tail(of(kind, lr, 0)["losses"], 0.1) for lr in grid}
            best = min(finals, key=lambda lr: finals[lr] if math.isfinite(finals[lr]) else math.inf)
            if best == grid[0] and len(grid) < 9:
                grid.insert(0, best / 2)
            elif best == grid[-1] and len(grid) < 9:
                grid.append(best * 2)
            else:
                break
        tuned[kind], grids[kind] = best, {f"{lr:g}": finals[lr] for lr in sorted(grid)}
    runs = {(kind, s): of(kind, tuned[kind], s)["losses"] for kind in tuned for s in seeds}
    ratios = [share_of_tokens(runs["adamw", s], runs["muon", s]) for s in seeds]
    draws = np.random.default_rng(0).choice(ratios, (10_000, len(seeds))).mean(1)
    final = {kind: [tail(runs[kind, s], 0.1) for s in seeds] for kind in tuned}
    low, high = np.quantile(draws, [0.025, 0.975])
    return {
        "steps": steps, "rows": rows, "parameters": small().params(), "grids": grids, "lr": tuned, "seeds": list(seeds),
        "ratios": ratios, "ratio": float(np.mean(ratios)), "low": float(low), "high": float(high), "final": final,
    }  # fmt: skip


def clip(store: Store, scale: float) -> dict[str, Any]:
    """The largest attention logit of each step, in the passes of the step itself, on the weights that clipping left."""
    lr = muon(store, scale)["lr"]
    steps, out = max(40, round(200 * scale)), {"tau": TAU, "arms": {}}  # type: tuple[int, dict[str, Any]]
    for kind, optim in (("muon", Muon(lr=3 * lr["muon"])), ("adamw", AdamW(lr=3 * lr["adamw"]))):
        for how, tau in (("unclipped", 1e30), ("clipped", TAU)):
            key = f"clip-{kind}-{optim.lr:g}-{how}-{TAU:g}-{steps}"
            found = store.get(key, lambda o=optim, t=tau: trained(small(qk_norm=False), o, steps=steps, rows=16, tau=t))  # type: ignore[misc]
            logits = np.array(found["logits"])
            above = np.nonzero(logits > TAU)[0]
            after = logits[above[0] + 1 :] if len(above) else logits[:0]
            out["arms"][f"{kind}, {how}"] = {
                "lr": optim.lr, "loss": tail(found["losses"], 0.1), "largest": float(logits.max()),
                "began": int(above[0]) if len(above) else None,
                "after_over_tau": float(after.max() / TAU) if len(after) else None,
                "median_after_over_tau": float(np.median(after) / TAU) if len(after) else None,
                "share_of_steps_above_1.1": float(np.mean(after > 1.1 * TAU)) if len(after) else None,
            }  # fmt: skip
    return out


def main() -> None:
    """Runs the experiments asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="precision,muon,clip")
    parser.add_argument("--scale", type=float, default=1.0, help="factor on the number of steps")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--store", type=Path)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    known: dict[str, Callable[[Store, float], dict[str, Any]]] = {"precision": precision, "muon": muon, "clip": clip}
    out: dict[str, Any] = {"card": card() | {"scale": args.scale}}
    for name in args.only.split(","):
        out[name] = known[name](Store(args.store), args.scale)
        if not args.json:
            print(name, json.dumps(out[name], indent=1), flush=True)
    if args.json:
        print(json.dumps(out, indent=1))


if __name__ == "__main__":
    main()
