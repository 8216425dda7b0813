"""Data of the training benchmarks: the source text of Python's standard library, as bytes; real text that every machine has.

Byte values are the token ids. The first nine tenths train, the rest is held out. The digest of all bytes is printed with the results, since
the text differs between versions of Python.
"""

from __future__ import annotations

import functools
import os
import statistics
import struct
import sysconfig
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import xxhash
from torch import Tensor

from upslope.machine.rng import seed_of
from upslope.model.config import ModelConfig, dense
from upslope.train.batch import Batch

VOCAB = 256
ROW = 128


@functools.cache
def corpus() -> Tensor:
    """(N,) uint8: the modules of the standard library, one after the other in order of their names."""
    files = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    return torch.frombuffer(bytearray(b"\n".join(f.read_bytes() for f in files)), dtype=torch.uint8)


def fingerprint() -> str:
    """The digest of the corpus."""
    return xxhash.xxh3_64_hexdigest(corpus().numpy().data)


def rows_at(step: int, rows: int, length: int = ROW, seed: int = 0, split: str = "train") -> Tensor:
    """(rows, length) int64: the rows of a step, drawn with replacement; a function of seed, split and step alone."""
    text = corpus()
    cut = len(text) * 9 // 10
    low, high = (0, cut) if split == "train" else (cut, len(text))
    generator = torch.Generator().manual_seed(seed_of(seed, split, step))
    starts = torch.randint(low, high - length, (rows,), generator=generator)
    return text[starts[:, None] + torch.arange(length)].long()


def batch_of(ids: Tensor) -> Batch:
    """A step that imitates every token that has a predecessor. ids: (rows, length)."""
    batch = Batch.of(list(ids))
    return replace(batch, imitate=(batch.pos > 0).float())


def model_1m(qk_norm: bool = True) -> ModelConfig:
    """1.05M parameters: d 128, 5 layers, 4 heads of 32 on 2 key heads, SwiGLU of 384: multiples of DeepSeek-V3's tiles of 128."""
    return dense(128, 5, 4, 2, 32, 384, context=512, vocab=VOCAB, qk_norm=qk_norm)


def card() -> dict[str, Any]:
    """What was run on what, without names."""
    return {
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "word_bits": 8 * struct.calcsize("P"),
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "load": round(os.getloadavg()[0], 2),
        "corpus": f"{len(corpus()):,} bytes, {fingerprint()}",
    }


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median and quartiles."""
    if len(values) < 2:
        return dict.fromkeys(("median", "q1", "q3"), float(values[0]))
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return {"median": middle, "q1": low, "q3": high}
