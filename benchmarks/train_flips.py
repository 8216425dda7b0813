"""Flipped bits: one bit of one element, injected into training. What is found, by where it is and how much it weighs.

    python benchmarks/train_flips.py [--only flips,clean] [--trials 200] [--clean 2000] [--json]

At rest: of weights or optimizer state between two steps. Replayed: of a gradient or an activation, in one of the two runs of a step that
is done twice; flips that leave all bits of the outcome alone are counted apart. Other steps: of a gradient of a step that is done once, by
the kind of bit; found where loss or norm is not finite or spikes (the skip rule, in a settled run). fit: flips at rest inside `fit`, which
goes back to its last saved state and must end with the bits of a run without faults. clean: steps of `fit` with all checks on and no fault.
"""

from __future__ import annotations

import argparse
import functools
import random
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from train_faults import alarms, bits, data, fitted, fresh, run

from upslope.train.batch import Batch
from upslope.train.integrity import Corrupted, Integrity, flip, replay
from upslope.train.losses import Imitate
from upslope.train.observers import Observer
from upslope.train.skip import Go, SkipRule, Watch, decide

KINDS = {"sign": (31, 31), "high exponent": (27, 30), "low exponent": (23, 26), "high mantissa": (12, 22), "low mantissa": (0, 11)}
"""Bits of a float32, first and last."""


def drawn(rng: random.Random, tensor: Tensor, kind: str | None = None) -> tuple[int, int]:
    """An element and a bit."""
    low, high = (0, 8 * tensor.element_size() - 1) if kind is None else KINDS[kind]
    return rng.randrange(tensor.numel()), rng.randint(low, high)


def on_gradient(parameter: Tensor, at: tuple[int, int]) -> Any:
    """A hook that flips a bit of the next gradient that arrives at a parameter."""

    def hit(p: Tensor) -> None:
        handle.remove()
        assert p.grad is not None
        flip(p.grad, *at)

    handle = parameter.register_post_accumulate_grad_hook(hit)
    return handle


def on_activation(module: nn.Module, rng: random.Random) -> Any:
    """A hook that flips a bit of the next output of a module."""

    def hit(m: nn.Module, given: Any, out: Tensor) -> Tensor:
        handle.remove()
        changed = out.contiguous().clone()
        flip(changed, *drawn(rng, changed))
        return changed

    handle = module.register_forward_hook(hit)
    return handle


def at_rest(trials: int) -> dict[str, int]:
    """Flips between two steps that the digests see."""
    trainer, rng, found = fresh(), random.Random(0), 0
    for k in range(3):
        trainer.step(data(k), Imitate(), 1e-3)
    names = [n for n, t in trainer.state().items() if t.is_floating_point()]
    for _ in range(trials):
        watch = Integrity()
        watch.after(3, trainer.state())
        tensor = trainer.state()[rng.choice(names)]
        at = drawn(rng, tensor)
        flip(tensor, *at)
        try:
            watch.before(3, trainer.state())
        except Corrupted:
            found += 1
        flip(tensor, *at)
    return {"injected": trials, "found": found}


def replayed(trials: int) -> dict[str, Any]:
    """Flips within one run of a step that is done twice, half of gradients and half of activations."""
    trainer, rng = fresh(), random.Random(1)
    out = {where: {"injected": 0, "found": 0, "without effect": 0, "wrong in the end": 0} for where in ("gradient", "activation")}
    linears = [m for m in trainer.model.modules() if isinstance(m, nn.Linear)]
    for k in range(3):
        trainer.step(data(k), Imitate(), 1e-3)
    start = {n: t.clone() for n, t in trainer.state().items()}
    trainer.step(data(3), Imitate(), 1e-3)
    wanted = bits(trainer)
    for trial in range(trials):
        trainer.load(start)
        where, faulty, runs = ("gradient", "activation")[trial % 2], rng.randrange(2), [0]

        def run(where: str = where, faulty: int = faulty, runs: list[int] = runs) -> Any:
            if runs[0] == faulty and where == "gradient":
                hit = rng.choice(trainer.optimizer.parameters)
                on_gradient(hit, drawn(rng, hit))
            elif runs[0] == faulty:
                on_activation(rng.choice(linears), rng)
            runs[0] += 1
            return trainer.step(data(3), Imitate(), 1e-3)

        result = replay(trainer, run)
        row, right = out[where], bits(trainer) == wanted
        row["injected"] += 1
        row["found"] += bool(result.faulty)
        row["without effect"] += not result.faulty and right
        row["wrong in the end"] += not right
    return out


def other(trials: int) -> dict[str, Any]:
    """Flips of gradients of steps that are done once, by kind of bit: what the finite check and the skip rule see."""
    trainer, rule, watch, rng = fresh(), SkipRule(), Watch(), random.Random(2)
    settled = 150
    for k in range(settled):
        report = trainer.step(data(k), Imitate(), 3e-3)
        watch = decide(rule, watch, k, report.loss, report.grad_norm)[1]
    start, out = {n: t.clone() for n, t in trainer.state().items()}, {}
    trainer.step(data(settled), Imitate(), 3e-3)
    clean = {n: p.detach().clone() for n, p in trainer.trained.items()}
    size = float(torch.stack([(clean[n] - start[f"model.{n}"]).norm() for n in clean]).norm())
    for kind in KINDS:
        found, moved = 0, []
        for _ in range(trials):
            trainer.load(start)
            p = rng.choice(trainer.optimizer.parameters)
            on_gradient(p, drawn(rng, p, kind))

            def judge(loss: float, norm: float) -> str:
                decision = decide(rule, watch, settled, loss, norm)[0]
                return "" if isinstance(decision, Go) else decision.why

            seen = bool(trainer.step(data(settled), Imitate(), 3e-3, judge).skipped)
            found += seen
            if not seen:
                moved.append(float(torch.stack([(p.detach() - clean[n]).norm() for n, p in trainer.trained.items()]).norm()) / size)
        moved.sort()
        out[kind] = {"injected": trials, "found": found, "update off by, median of the rest": moved[len(moved) // 2] if moved else None}
    return out


class Flipper(Observer):
    """Flips a bit at rest after some steps: a fault, disguised as an observer."""

    kind: ClassVar[str] = "flipper"
    at: tuple[int, ...] = ()
    seed: int = 0

    def __call__(self, step: int, model: nn.Module, batch: Batch) -> dict[str, float]:
        """Flips once per step in `at`, the first time that it comes by."""
        if step in self.at and (self.seed, step) not in DONE:
            DONE.add((self.seed, step))
            rng = random.Random(f"{self.seed} {step}")
            p = rng.choice(list(model.parameters()))
            flip(p, *drawn(rng, p))
        return {}


DONE: set[tuple[int, int]] = set()


def in_fit(trials: int, folder: Path) -> dict[str, Any]:
    """Runs of `fit` with a flip at rest: how many noticed, how many ended with the bits of a run without."""
    wanted = bits(fitted(folder / "whole", 12)[0])
    noticed = same = 0
    for seed in range(trials):
        where = folder / str(seed)
        trainer, _ = fitted(where, 12, (Flipper(every=1, at=(random.Random(seed).randrange(2, 12),), seed=seed),))
        noticed += "state changed between steps" in alarms(where)
        same += bits(trainer) == wanted
    return {"injected": trials, "found": noticed, "bit-identical in the end": same}


def flips(trials: int, folder: Path) -> dict[str, Any]:
    """The three classes, and inside a fit."""
    return {"at rest": at_rest(trials), "replayed": replayed(trials), "other steps": other(max(10, trials // 5)), "fit": in_fit(10, folder)}


def clean(steps: int, folder: Path) -> dict[str, Any]:
    """Alarms of a fit without faults."""
    _, history = fitted(folder, steps, save_seconds=20.0)
    said = alarms(folder)
    spikes = sum("spike" in a for a in said)
    return {"steps": history.steps, "alarms of corruption": len(said) - spikes, "spikes by the skip rule": spikes, "said": said}


def main() -> None:
    """Runs what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="flips,clean")
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--clean", type=int, default=2000)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    run({"flips": functools.partial(flips, args.trials), "clean": functools.partial(clean, args.clean)}, args.only, args.json)


if __name__ == "__main__":
    main()
