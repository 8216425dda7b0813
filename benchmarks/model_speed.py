"""Speed of the model on a CPU beside blocks written by hand and beside transformers, same shapes, same weights, interleaved.

Contenders compute the same logits, which is checked first. In each repeat all of them run in turn, in rotating order; ratios are taken
within a repeat and their median and quartiles shown. A contender that takes more than 4 times as long in its first call is not run again.
Bars: at least 0.97 of the handwritten model (`benchmarks/handwritten.py`), 1.15 times transformers, for mixtures 1.5 times whichever of its
expert implementations is fastest. Absolute figures do not travel between machines; run it on a quiet one.

    python benchmarks/model_speed.py [--repeats 9] [--dtype fp32|bf16] [--only llama-1.3M] [--json OUT]

bf16 is autocast, as our trainer and theirs use it. `batched_mm` experts took 65 times as long as ours and are left out.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import struct
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from handwritten import Handwritten
from torch import Tensor

from upslope.model.config import Gated, ModelConfig, MoE, Router, TopK, dense
from upslope.model.init import initialise
from upslope.model.transformer import Transformer
from upslope.model.weights import export_hf

VOCAB = 1024
SHAPES = ((16, 128), (8, 256))  # rows, tokens of a row
LEAST = 0.1  # seconds of one measurement
SLOW = 4.0  # times ours beyond which a contender is not run again
EXPERTS = ("grouped_mm", "eager")


class Case(NamedTuple):
    """bars: least ratios to the handwritten model and to the fastest of transformers' variants."""

    name: str
    config: ModelConfig
    shape: tuple[int, int]
    variants: tuple[str, ...]
    bars: tuple[float, float]


def cases() -> list[Case]:
    """1.3M and 5.7M parameters at both shapes; a mixture of 16 experts, 2 for each token."""
    sizes = {"1.3M": (128, 5, 4, 2, 32, 416), "5.7M": (256, 7, 8, 4, 32, 704)}
    out = []
    for size, widths in sizes.items():
        for shape in SHAPES:
            out.append(Case(f"llama-{size}", dense(*widths, context=512, vocab=VOCAB, qk_norm=False), shape, ("",), (0.97, 1.15)))
    plain = dense(128, 4, 4, 2, 32, 128, context=512, vocab=VOCAB)
    moe = MoE(experts=16, expert=Gated(hidden=128), router=Router(select=TopK(k=2)))
    mixture = plain.replace(blocks={"moe": plain.blocks["dense"].replace(ffn=moe)}, pattern=(("moe", 4),))
    out += [Case("qwen3moe-3.6M", mixture, shape, EXPERTS, (0.97, 1.5)) for shape in SHAPES]
    return out


Step = Callable[[], Tensor]


def contenders(case: Case, ids: Tensor, skipped: set[str]) -> dict[str, tuple[torch.nn.Module, Step]]:
    """Each with the same weights: its module, and logits (rows · length, V) of the batch. skipped: those known to be slow."""
    import transformers

    model = initialise(Transformer(case.config), 0)
    with torch.no_grad():  # heads and output projections start at zero
        for i, p in enumerate(model.parameters()):
            p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(i)) * 0.05)
    rows, length = case.shape
    seg, pos, flat = torch.arange(rows).repeat_interleave(length), torch.arange(length).repeat(rows), ids.flatten()
    hand = Handwritten(model, length)
    out: dict[str, tuple[torch.nn.Module, Step]] = {
        "ours": (model, lambda: model.logits(model(flat, seg, pos))),
        "handwritten": (hand, lambda: hand(ids).flatten(0, 1)),
    }
    with tempfile.TemporaryDirectory() as folder:
        export_hf(model, None, Path(folder))
        for variant in case.variants:
            name = f"transformers {variant}".strip()
            if name in skipped:
                continue
            given = {"experts_implementation": variant} if variant else {}
            theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **given).train()
            out[name] = (theirs, lambda t=theirs: t(ids, use_cache=False).logits.flatten(0, 1))
    return out


def agree(given: dict[str, tuple[torch.nn.Module, Step]]) -> None:
    """All contenders compute the same logits, and those say something."""
    with torch.no_grad():
        wanted = given["ours"][1]()
        assert float(wanted.std()) > 0.3, "logits too quiet to mean anything"
        for name, (_, step) in given.items():
            off = float((step() - wanted).abs().max())
            assert off <= 1e-3, f"{name} is {off:.1e} from ours"


def trained(module: torch.nn.Module, step: Step, targets: Tensor, half: bool) -> Callable[[], None]:
    """Forward and backward of the cross-entropy."""

    def run() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            logits = step()
        F.cross_entropy(logits.float(), targets).backward()
        module.zero_grad(set_to_none=True)

    return run


def forwarded(step: Step, half: bool) -> Callable[[], None]:
    """Forward only."""

    def run() -> None:
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=half):
            step()

    return run


def seconds(run: Callable[[], None], times: int) -> float:
    """Of one call, over a number of them."""
    began = time.perf_counter()
    for _ in range(times):
        run()
    return (time.perf_counter() - began) / times


def spread(values: list[float]) -> dict[str, float]:
    """Median and quartiles."""
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3
    return {"median": middle, "q1": low, "q3": high}


def measure(runs: dict[str, Callable[[], None]], repeats: int) -> dict[str, list[float]]:
    """Seconds per call of each contender in each repeat, the order rotating; of a slow one those of its first call alone."""
    out = {name: [seconds(run, 1)] for name, run in runs.items()}
    names = [name for name in runs if name == "ours" or out[name][0] < SLOW * out["ours"][0]]
    times = {name: math.ceil(LEAST / seconds(runs[name], 1)) for name in names}
    out |= {name: [] for name in names}
    for r in range(repeats):
        for name in names[r % len(names) :] + names[: r % len(names)]:
            out[name].append(seconds(runs[name], times[name]))
    return out


def compare(case: Case, what: str, runs: dict[str, Callable[[], None]], repeats: int) -> dict[str, Any]:
    """One line of the report."""
    took = measure(runs, repeats)
    tokens = math.prod(case.shape)
    ratios = {name: [b / a for a, b in zip(took["ours"], other)] for name, other in took.items() if name != "ours"}
    theirs = [name for name in ratios if name != "handwritten"]
    fastest = min(theirs, key=lambda n: statistics.median(took[n]))
    bars = {"handwritten": case.bars[0], fastest: case.bars[1]}
    return {
        "case": case.name,
        "parameters": case.config.params(),
        "shape": list(case.shape),
        "what": what,
        "tokens_per_s": {name: spread([tokens / t for t in v]) for name, v in took.items()},
        "ours_over": {name: spread(v) for name, v in ratios.items()},
        "bars": {name: {"at_least": bar, "met": statistics.median(ratios[name]) >= bar} for name, bar in bars.items()},
    }


def card() -> dict[str, Any]:
    """What was run on what, without names."""
    import transformers

    return {
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "threads": torch.get_num_threads(),
        "word_bits": 8 * struct.calcsize("P"),
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "load": round(os.getloadavg()[0], 2),
    }


def line(row: dict[str, Any]) -> str:
    """A row as text."""
    speed, (rows, length) = row["tokens_per_s"]["ours"]["median"], row["shape"]
    head = f"{row['case']:14} {rows:>2}×{length:<3} {row['what']:7} {speed:>9,.0f} tokens/s"
    parts = []
    for name, r in row["ours_over"].items():
        bar = row["bars"].get(name)
        mark = "" if bar is None else f" {'≥' if bar['met'] else '< !'} {bar['at_least']}"
        parts.append(f"{name} {r['median']:.2f} [{r['q1']:.2f}, {r['q3']:.2f}]{mark}")
    return f"{head}   ours / " + "   ".join(parts)


def main() -> None:
    """All cases, training and forward."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--dtype", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--only", default="", help="part of a case's name")
    parser.add_argument("--json", type=Path, help="file for the figures")
    args = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(args.threads)
    half = args.dtype == "bf16"
    about, rows = card() | {"dtype": args.dtype}, []
    skipped: set[str] = set()
    print(about)
    for case in cases():
        if args.only not in case.name:
            continue
        ids = torch.randint(0, VOCAB, case.shape, generator=torch.Generator().manual_seed(0))
        targets = ids.roll(-1, 1).flatten()
        given = contenders(case, ids, skipped)
        agree(given)
        for what in ("train", "forward"):
            runs = {
                name: trained(module, step, targets, half) if what == "train" else forwarded(step, half)
                for name, (module, step) in given.items()
                if name not in skipped
            }
            rows.append(compare(case, what, runs, args.repeats))
            skipped |= {name for name, r in rows[-1]["ours_over"].items() if r["median"] > SLOW}
            print(line(rows[-1]), flush=True)
    if args.json is not None:
        args.json.write_text(json.dumps({"card": about, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
