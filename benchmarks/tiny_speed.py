"""Training and sampling speed of the tiny model beside transformers' Qwen3 with the same shapes and weights, interleaved.

Prints tokens per second (median of the repeats) and the ratio of the medians with its range over repeats. Absolute figures do
not travel between machines; run it on a quiet one: two jobs side by side make both several times slower.

    python benchmarks/tiny_speed.py [--repeats 5] [--json]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from upslope.generate.engine import LocalEngine, Request, Sampling, generate
from upslope.model.config import tiny
from upslope.model.init import initialise
from upslope.model.transformer import Transformer
from upslope.model.weights import export_hf

ROWS, LENGTH, VOCAB = 16, 128, 1024
GROUP, NEW = 256, 48


def timed(work: Callable[[], int]) -> float:
    """Tokens per second of one call that says how many tokens it handled."""
    began = time.perf_counter()
    tokens = work()
    return tokens / (time.perf_counter() - began)


def main() -> None:
    """Interleaved repeats of both contenders, training then sampling."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    import transformers

    transformers.logging.set_verbosity_error()
    ours = initialise(Transformer(tiny(vocab=VOCAB)), 0)
    with torch.no_grad():  # the head starts at zero; random logits make sampling honest
        for p in ours.parameters():
            p.add_(torch.randn_like(p) * 0.02)
    with tempfile.TemporaryDirectory() as folder:
        export_hf(ours, None, Path(folder))
        theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ids = torch.randint(0, VOCAB, (ROWS, LENGTH))
    seg = torch.arange(ROWS).repeat_interleave(LENGTH)
    pos = torch.arange(LENGTH).repeat(ROWS)
    targets = ids.roll(-1, 1).flatten()

    def train_ours() -> int:
        with torch.autocast("cpu", torch.bfloat16):
            loss = torch.nn.functional.cross_entropy(ours.logits(ours(ids.flatten(), seg, pos)).float(), targets)
        loss.backward()
        ours.zero_grad()
        return ids.numel()

    def train_theirs() -> int:
        with torch.autocast("cpu", torch.bfloat16):
            loss = torch.nn.functional.cross_entropy(theirs(ids).logits.float().flatten(0, 1), targets)
        loss.backward()
        theirs.zero_grad()
        return ids.numel()

    prompt = ids[0, :16].tolist()

    def sample_ours() -> int:
        engine = LocalEngine(ours, slots=GROUP, numerics="fp32", eos=())
        done = generate(engine, [Request(str(i), prompt, Sampling(max_new=NEW), seed=i) for i in range(GROUP)])
        return sum(len(c.ids) for c in done)

    def sample_theirs() -> int:
        with torch.no_grad():
            out = theirs.generate(
                torch.tensor([prompt] * GROUP), max_new_tokens=NEW, min_new_tokens=NEW, do_sample=True, top_k=0, pad_token_id=0
            )
        return int(out[:, len(prompt) :].numel())

    rows = []
    for name, mine, peer in (
        ("train forward+backward, bf16 autocast", train_ours, train_theirs),
        ("sample, fp32", sample_ours, sample_theirs),
    ):
        mine(), peer()
        pairs = [(timed(mine), timed(peer)) for _ in range(args.repeats)]
        ratios = sorted(a / b for a, b in pairs)
        row = {
            "what": name,
            "ours": statistics.median(a for a, _ in pairs),
            f"transformers {transformers.__version__}": statistics.median(b for _, b in pairs),
            "ratio": statistics.median(ratios),
            "range": [ratios[0], ratios[-1]],
        }
        rows.append(row)
    card = {
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "load": os.getloadavg()[0],
    }
    if args.json:
        print(json.dumps({"card": card, "rows": rows}, indent=1))
        return
    print(card)
    for row in rows:
        print(
            "  ".join(
                f"{k} {v:,.0f}" if isinstance(v, float) and v > 50 else f"{k} {v:.2f}" if isinstance(v, float) else f"{v}"
                for k, v in row.items()
            )
        )


if __name__ == "__main__":
    main()
