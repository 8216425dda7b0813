"""Xiaomi: MiMo-7B."""

from __future__ import annotations

from upslope.config import FrozenDict
from upslope.model.config import MTP, RMS, ModelConfig, Normal, Rope
from upslope.optim.config import AdamW
from upslope.recipes.labs.lab import Fact, Lab, Published, Training, full, pre, swiglu, unknown


def mimo_7b() -> Lab:
    """7B dense, made for reasoning: MTP, and a base of 640,000."""
    block = pre(full(32, 8, 128, Rope(base=640_000), bias="qkv"), swiglu(11_008), 1e-5)
    model = ModelConfig(
        d_model=4096,
        blocks=FrozenDict(dense=block),
        pattern=(("dense", 36),),
        final_norm=RMS(eps=1e-5),
        init=Normal(),
        vocab=151_680,
        context=32_768,
        mtp=MTP(block="dense"),
    )
    facts = (
        *unknown("init", "mtp.weight", why="not found"),
        Fact("mtp.block", "M", "a block like the others"),
        Fact("training", "M", "arXiv 2505.07608"),
    )
    training = Training(
        "25T",
        "up to 2560 x 8192 = 21M tokens, warmed up over 168B",
        "warm-up 84B; 1.07e-4 for 10.2T; cosine to 3e-5 over 7.5T; 3e-5 for 4T; cosine to 1e-5 over 1.5T; 1e-5",
        "adamw",
        "BF16",
        optim=AdamW(lr=1.07e-4),
    )
    source = "arXiv 2505.07608; released configuration"
    return Lab("mimo_7b", "Xiaomi", "MiMo-7B", "2025-05", model, Published(7.62), training, "C", source, facts)
