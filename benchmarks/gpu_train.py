"""Training on one CUDA device: `Trainer.step` beside transformers' model at 124M parameters, and FP8 beside bf16 at 1.2B.

Not yet run on a CUDA device: its functions have been run on a CPU at toy sizes only, so it holds no figures.

Contenders start from the same weights and see the same tokens: rows of `--length`, bf16 autocast, float32 weights, gradients clipped.
peer: ours is the trainer with its checks of every step (finite loss and norm, skip rule), blocks compiled; the peer is transformers' Llama
with scaled dot-product attention under `torch.compile`, in a plain loop with a fused AdamW. In each round both run in turn. Bar: 0.95.
fp8: the trainer with the narrow format that this device has kernels for (9.0: DeepSeek-V3's tiles; 10.0 and above: MXFP8) beside itself in
bf16. Bar: 1.1. Where there are no kernels it is not measured.

    python benchmarks/gpu_train.py [--only peer,fp8] [--length 1024] [--tokens 65536] [--micro 16384] [--rounds 5] [--steps 5] [--json OUT]
                                   [--toy]

--toy: a toy model on whatever device there is, to see that everything runs.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from train_data import batch_of
from train_plain import adamw, theirs_of

from upslope.model.config import FanIn, ModelConfig, Tied, dense
from upslope.model.init import initialise
from upslope.model.transformer import Transformer
from upslope.optim.config import AdamW
from upslope.precision.config import Emulated, Fp8V3, MxFp8
from upslope.precision.kernels import lacking
from upslope.precision.recipe import recipe_of
from upslope.train.hooks import Emulation
from upslope.train.losses import Imitate
from upslope.train.skip import Go, SkipRule, Watch, decide
from upslope.train.trainer import Trainer

OPTIM = AdamW(lr=3e-4)
BARS = {"peer": 0.95, "fp8": 1.1}
Rows = Callable[[int], torch.Tensor]
Step = Callable[[], float]


def config(what: str, length: int, toy: bool) -> ModelConfig:
    """124M: d 768, 12 layers, 12 heads of 64, SwiGLU of 2,048; 1.2B: d 2,048, 18 layers; tied, vocabulary 50,304. Or a toy."""
    sizes = (128, 2, 2, 2, 64, 256) if toy else (768, 12, 12, 12, 64, 2048) if what == "peer" else (2048, 18, 32, 8, 64, 8192)
    found = dense(*sizes, context=length, vocab=256 if toy else 50_304, head=Tied(), qk_norm=False)
    return found.replace(init=FanIn(embed_std=0.02))


def narrow(device: str) -> tuple[Emulated | None, str]:
    """(the FP8 format that a device has kernels for, or None; why there is none)."""
    major = torch.cuda.get_device_capability()[0] if device == "cuda" else 0
    wanted: Emulated = MxFp8(kernels="real") if major >= 10 else Fp8V3(kernels="real")
    recipe = recipe_of(wanted)
    pairs = (recipe.fprop, recipe.dgrad, recipe.wgrad)
    why = next((w for a, b in pairs if (w := lacking(a.spec, b.spec, torch.device(device)))), "")
    return (None, why) if why else (wanted, "")


def conditions(device: str) -> dict[str, Any]:
    """What there is to run on."""
    found: dict[str, Any] = {"torch": torch.__version__, "device": device, "triton": find_spec("triton") is not None}
    if find_spec("transformers") is not None:
        import transformers

        found["transformers"] = transformers.__version__
    if device == "cuda":
        found |= {"name": torch.cuda.get_device_name(), "capability": ".".join(map(str, torch.cuda.get_device_capability()))}
    return found | {"fp8": narrow(device)[1] or "has kernels", "run on a CUDA device before": False}


def ours(model: Transformer, rows: Rows, micro: int, device: str, compiled: bool, precision: Emulated | None = None) -> Step:
    """One step of the trainer, judged like those of a fit."""
    if compiled:
        torch._dynamo.config.recompile_limit = 64
        for block in model.blocks:
            block.compile()
    hooks = [] if precision is None else [Emulation(model, precision)]
    trainer, rule, state = Trainer(model, OPTIM, numerics="bf16", micro_tokens=micro, hooks=hooks), SkipRule(), [Watch()]

    def judge(loss: float, norm: float) -> str:
        decision, state[0] = decide(rule, state[0], trainer.steps, loss, norm)
        return "" if isinstance(decision, Go) else decision.why

    def step() -> float:
        return trainer.step(batch_of(rows(trainer.steps)).to(device), Imitate(), OPTIM.lr, judge).loss

    return step


def peer(model: Transformer, rows: Rows, micro: int, device: str, compiled: bool) -> Step:
    """One step of transformers' model in a plain loop over micro-batches."""
    theirs = theirs_of(model).to(device)
    optim, parameters, done = adamw(theirs, OPTIM), list(theirs.parameters()), [0]
    forward: Any = torch.compile(theirs) if compiled else theirs

    def step() -> float:
        ids = rows(done[0]).to(device)
        done[0] += 1
        parts, total = ids.split(max(1, micro // ids.shape[1])), 0.0
        for part in parts:
            with torch.autocast(device, torch.bfloat16):
                loss = forward(part, labels=part, use_cache=False).loss * len(part) / len(ids)
            loss.backward()
            total += float(loss.detach())
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optim.step()
        optim.zero_grad(set_to_none=True)
        return total

    return step


def seconds(step: Step, times: int, device: str) -> float:
    """Of one step, over a number of them."""
    if device == "cuda":
        torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(times):
        step()
    if device == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - began) / times


def measure(what: str, args: argparse.Namespace, device: str) -> dict[str, Any]:
    """Two contenders in turn: speeds and the ratio, first over second."""
    length = 64 if args.toy else args.length
    tokens, micro = (8 * length, 4 * length) if args.toy else (args.tokens, args.micro)
    wanted, compiled = config(what, length, args.toy), device == "cuda"

    def rows(step: int) -> torch.Tensor:
        return torch.randint(0, wanted.vocab, (tokens // length, length), generator=torch.Generator().manual_seed(step))

    def model() -> Transformer:
        return initialise(Transformer(wanted), 0)

    def mine(precision: Emulated | None = None) -> Step:
        return ours(model().to(device), rows, micro, device, compiled, precision)

    if what == "peer":
        steps = {"ours": mine(), "transformers": peer(model(), rows, micro, device, compiled)}
    else:
        precision, why = narrow(device)
        if precision is None and not args.toy:
            return {"not measured": why}
        steps = {"fp8": mine(precision or Fp8V3()), "bf16": mine()}
    a, b = steps
    first = {name: [step() for _ in range(3)] for name, step in steps.items()}
    off = max(abs(x - y) / y for x, y in zip(first[a], first[b]))
    assert off < 0.02, f"contenders do not learn alike: {first}"
    took: dict[str, list[float]] = {name: [] for name in steps}
    for r in range(args.rounds):
        for name in sorted(steps, reverse=bool(r % 2)):
            took[name].append(seconds(steps[name], args.steps, device))
    ratios = [y / x for x, y in zip(took[a], took[b])]
    return {
        "parameters": wanted.params(),
        "tokens_per_s": {name: tokens / statistics.median(v) for name, v in took.items()},
        f"{a} over {b}": {"median": statistics.median(ratios), "least": min(ratios), "most": max(ratios), "bar": BARS[what]},
        "losses off": off,
        "memory_gb": torch.cuda.max_memory_allocated() / 1e9 if device == "cuda" else 0.0,
    }


def main() -> None:
    """Conditions, then what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="peer,fp8")
    parser.add_argument("--length", type=int, default=1024)
    parser.add_argument("--tokens", type=int, default=65_536, help="of a step")
    parser.add_argument("--micro", type=int, default=16_384, help="tokens of one pass")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=5, help="of a round")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--toy", action="store_true")
    args = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    about = conditions(device)
    print(about, flush=True)
    if device != "cuda" and not args.toy:
        print("no CUDA device here: nothing is measured\nway out: run it where torch.cuda.is_available(); --toy to see that it runs")
        return
    torch.set_float32_matmul_precision("high")
    result = {}
    for what in args.only.split(","):
        result[what] = measure(what, args, device)
        print(what, json.dumps(result[what], indent=1), flush=True)
        if device == "cuda":
            torch.cuda.empty_cache()
    if args.json is not None:
        args.json.write_text(json.dumps({"card": about, **result}, indent=1) + "\n")


if __name__ == "__main__":
    main()
