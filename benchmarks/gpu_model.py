"""Training steps on one CUDA device, as a share of the matrix products that this device is measured to do.

Three models: dense of 124M and 1.2B parameters and a mixture of about 1B (8 experts, 2 for each token). A step is forward, backward and a
fused AdamW update of float32 weights under bf16 autocast, blocks compiled one by one. Operations are those of `upslope.model.cost` (three
forward passes; norms and softmax left out). The peak is the fastest of some large bf16 products on the same device, not a data sheet's.

Not yet run on a CUDA device: its functions have been run on a CPU at toy sizes only, so it holds no figures.

    python benchmarks/gpu_model.py [--only 124M] [--length 2048] [--compile blocks|whole|none] [--json OUT]
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

from upslope.config import FrozenDict
from upslope.model.config import FanIn, Gated, ModelConfig, MoE, Router, Tied, TopK, dense
from upslope.model.init import initialise
from upslope.model.transformer import Transformer

VOCAB = 50_304
PRODUCTS = ((8192, 8192, 8192), (16384, 4096, 4096), (16384, 2048, 8192))  # (m, n, k) of which the fastest is the peak


class Case(NamedTuple):
    """tokens: of one step, in rows of the asked length."""

    name: str
    config: ModelConfig
    tokens: int


def mixture(plain: ModelConfig, experts: int, chosen: int, hidden: int) -> ModelConfig:
    """A dense model with its FFNs replaced by experts."""
    moe = MoE(experts=experts, expert=Gated(hidden=hidden), router=Router(select=TopK(k=chosen)))
    return plain.replace(blocks=FrozenDict(moe=plain.blocks["dense"].replace(ffn=moe)), pattern=(("moe", plain.depth),))


def cases(length: int) -> list[Case]:
    """The three models."""

    def plain(d: int, depth: int, heads: int, kv_heads: int, hidden: int) -> ModelConfig:
        config = dense(d, depth, heads, kv_heads, 64, hidden, context=length, vocab=VOCAB, head=Tied(), qk_norm=False)
        return config.replace(init=FanIn(embed_std=0.02))  # tied: embeddings are the head as well

    return [
        Case("dense-124M", plain(768, 12, 12, 12, 2048), 64 * 1024),
        Case("dense-1.2B", plain(2048, 18, 32, 8, 8192), 16 * 1024),
        Case("moe-1B", mixture(plain(1024, 16, 16, 4, 2304), 8, 2, 2304), 32 * 1024),
    ]


def synchronize(device: str) -> None:
    """Waits until the device is idle."""
    if device == "cuda":
        torch.cuda.synchronize()


def seconds(run: Callable[[], Any], times: int, device: str) -> float:
    """Of one call, over a number of them."""
    synchronize(device)
    began = time.perf_counter()
    for _ in range(times):
        run()
    synchronize(device)
    return (time.perf_counter() - began) / times


def peak(device: str, products: tuple[tuple[int, int, int], ...] = PRODUCTS, times: int = 30) -> float:
    """Operations per second of the fastest bf16 product."""
    best = 0.0
    for m, n, k in products:
        a, b = (torch.randn(*shape, device=device, dtype=torch.bfloat16) for shape in ((m, k), (k, n)))
        seconds(lambda a=a, b=b: a @ b, 5, device)  # type: ignore[misc]
        best = max(best, 2.0 * m * n * k / seconds(lambda a=a, b=b: a @ b, times, device))  # type: ignore[misc]
    return best


def stepper(config: ModelConfig, tokens: int, length: int, how: str, device: str) -> Callable[[], torch.Tensor]:
    """One training step of a fresh model on random tokens, returning its loss."""
    model = initialise(Transformer(config), 0).to(device)
    optim = torch.optim.AdamW(model.parameters(), lr=3e-4, fused=True)
    rows = tokens // length
    ids = torch.randint(0, config.vocab, (rows * length,), generator=torch.Generator().manual_seed(0)).to(device)
    seg = torch.arange(rows, device=device).repeat_interleave(length)
    pos = torch.arange(length, device=device).repeat(rows)
    if how == "blocks":
        torch._dynamo.config.recompile_limit = 64  # a kind of block is compiled once, but guards differ between the first and the rest
        for block in model.blocks:
            block.compile()
    forward: Any = torch.compile(model) if how == "whole" else model

    def step() -> torch.Tensor:
        with torch.autocast(device, torch.bfloat16):
            loss = F.cross_entropy(model.logits(forward(ids, seg, pos)).float(), ids.roll(-1))
        loss.backward()
        optim.step()
        optim.zero_grad(set_to_none=True)
        return loss.detach()

    return step


def measure(case: Case, length: int, how: str, most: float, repeats: int, device: str) -> dict[str, Any]:
    """One line of the report."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    step = stepper(case.config, case.tokens, length, how, device)
    warm = seconds(step, 5, device)
    took = [seconds(step, 3, device) for _ in range(repeats)]
    tokens = case.tokens // length * length
    work = 3.0 * case.config.flops(length) * tokens
    low, middle, high = statistics.quantiles(took, n=4, method="inclusive")
    return {
        "case": case.name,
        "parameters": case.config.params(),
        "tokens": tokens,
        "length": length,
        "compile": how,
        "tokens_per_s": {"median": tokens / middle, "q1": tokens / high, "q3": tokens / low},
        "share_of_peak": work / middle / most,
        "warm_up_s": 5 * warm,
        "memory_gb": torch.cuda.max_memory_allocated() / 1e9 if device == "cuda" else 0.0,
        "loss": float(step()),
    }


def main() -> int:
    """Peak, then the three models."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="part of a case's name")
    parser.add_argument("--length", type=int, default=1024, help="tokens of a row")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--compile", choices=("blocks", "whole", "none"), default="blocks")
    parser.add_argument("--json", type=Path, help="file for the figures")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        print("gpu_model: no CUDA device here\nway out: run it where torch.cuda.is_available(); on a CPU: model_speed.py", file=sys.stderr)
        return 2
    torch.set_float32_matmul_precision("high")
    most = peak("cuda")
    card = {"torch": torch.__version__, "device": torch.cuda.get_device_name(), "measured_peak_tflops": most / 1e12}
    print(card, flush=True)
    rows = []
    for case in cases(args.length):
        if args.only in case.name:
            rows.append(measure(case, args.length, args.compile, most, args.repeats, "cuda"))
            torch.cuda.empty_cache()
            r = rows[-1]
            print(
                f"{r['case']:11} {r['parameters'] / 1e6:6,.0f}M  {r['tokens_per_s']['median']:>10,.0f} tokens/s  "
                f"{100 * r['share_of_peak']:.1f} % of the measured peak  {r['memory_gb']:.0f} GB  loss {r['loss']:.2f}",
                flush=True,
            )
    if args.json is not None:
        args.json.write_text(json.dumps({"card": card, "rows": rows}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
