"""Linear maps on one CUDA device, forward and backward: FP8 in DeepSeek-V3's tiles by the hardware's kernels beside bf16.

Not yet run on a CUDA device: its functions have been run on a CPU at toy sizes only, with FP8 emulated, so it holds no figures.

Shapes: one map of 4096 × 4096 on 8192 tokens, and the SwiGLU of a model of 1.2B parameters (2048 → 8192 → 2048) on 8192 tokens. Weights are
float32 and the inputs bf16, under bf16 autocast, as in training; in every round both run in turn, in alternating order, and the ratio is
taken within the round. FP8 includes the quantisation of all operands. `--format` measures another format where the device has its kernels.

    python benchmarks/gpu_fp8.py [--format fp8_v3|mxfp8|mxfp4|nvfp4] [--rounds 9] [--times 10] [--json OUT] [--toy]

--toy: small shapes on whatever device there is, emulated where it must, to see that everything runs; its ratios mean nothing.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from upslope.precision.config import Emulated, Fp8V3, MxFp4, MxFp8, NvFp4, Rules
from upslope.precision.linear import convert
from upslope.precision.products import described, supported

RULES = Rules(include=("*",))
FORMATS: dict[str, Emulated] = {
    "fp8_v3": Fp8V3(rules=RULES),
    "mxfp8": MxFp8(rules=RULES),
    "mxfp4": MxFp4(rules=RULES),
    "nvfp4": NvFp4(rules=RULES),
}


class SwiGLU(nn.Module):
    """down(silu(gate x) · up x)."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.gate, self.up = nn.Linear(width, hidden, bias=False), nn.Linear(width, hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """x (..., width) → (..., width)."""
        out: Tensor = self.down(F.silu(self.gate(x)) * self.up(x))
        return out


def shapes(toy: bool) -> dict[str, tuple[Callable[[], nn.Module], int, int]]:
    """Name → module, tokens, width."""
    if toy:
        return {"linear": (lambda: nn.Sequential(nn.Linear(256, 256, bias=False)), 128, 256), "mlp": (lambda: SwiGLU(128, 256), 128, 128)}
    return {
        "linear 4096 x 4096 x 8192": (lambda: nn.Sequential(nn.Linear(4096, 4096, bias=False)), 8192, 4096),
        "mlp of 1.2B": (lambda: SwiGLU(2048, 8192), 8192, 2048),
    }


def passes(module: nn.Module, x: Tensor, g: Tensor) -> Callable[[], list[Tensor]]:
    """One forward and backward pass: the output and the gradients of the input and the weights."""
    x = x.clone().requires_grad_()
    wanted = [x, *module.parameters()]

    def once() -> list[Tensor]:
        with torch.autocast(x.device.type, torch.bfloat16):
            y: Tensor = module(x)
        return [y.detach(), *torch.autograd.grad(y, wanted, g.to(y.dtype))]

    return once


def seconds(run: Callable[[], object], times: int, device: str) -> float:
    """Of one run, over a number of them."""
    if device == "cuda":
        torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(times):
        run()
    if device == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - began) / times


def compared(
    make: Callable[[], nn.Module], tokens: int, width: int, config: Emulated, rounds: int, times: int, device: str
) -> dict[str, Any]:
    """bf16 and the format on the same weights and tokens: distance of their results, seconds, bf16 seconds over the format's."""
    torch.manual_seed(0)
    plain, narrow = make().to(device), make().to(device)
    narrow.load_state_dict(plain.state_dict())
    convert(narrow, config)
    x, g = (torch.randn(tokens, width, device=device).bfloat16() for _ in range(2))
    runs = {"bf16": passes(plain, x, g), config.kind: passes(narrow, x, g)}
    results = {name: [run() for _ in range(3)][-1] for name, run in runs.items()}
    off = [((b.float() - a.float()).norm() / a.float().norm()).item() for a, b in zip(*results.values())]
    assert max(off) < (0.15 if "fp8" in config.kind else 0.6), f"results differ by more than the format: {off}"
    took: dict[str, list[float]] = {name: [] for name in runs}
    for r in range(rounds):
        for name in sorted(runs, reverse=bool(r % 2)):
            took[name].append(seconds(runs[name], times, device))
    ratios = [a / b for a, b in zip(took["bf16"], took[config.kind])]
    return {
        "seconds": {name: statistics.median(v) for name, v in took.items()},
        f"bf16_over_{config.kind}": {"median": statistics.median(ratios), "least": min(ratios), "most": max(ratios)},
        "largest_distance": max(off),
    }


def main() -> None:
    """The device, then each shape."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--format", choices=FORMATS, default="fp8_v3")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--times", type=int, default=10, help="passes of a round")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--toy", action="store_true")
    args = parser.parse_args()
    device, config = "cuda" if torch.cuda.is_available() else "cpu", FORMATS[args.format]
    about: dict[str, Any] = {"torch": torch.__version__, "device": device, "products": described(config, device)}
    if device == "cuda":
        about |= {"name": torch.cuda.get_device_name(), "capability": ".".join(map(str, torch.cuda.get_device_capability()))}
    print(about, flush=True)
    if (why := supported(config, device)) and not args.toy:
        print(f"not run: {why}\nway out: a device that has these kernels; --toy to see that it runs")
        return
    config = config.replace(kernels="auto" if why else "real")
    times = 1 if args.toy else args.times
    found = {name: compared(*shape, config, args.rounds, times, device) for name, shape in shapes(args.toy).items()}
    print(json.dumps(found, indent=1))
    if args.json is not None:
        args.json.write_text(json.dumps({"card": about, **found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
