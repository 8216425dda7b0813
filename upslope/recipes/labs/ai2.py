"""Ai2: OLMo 2."""

from __future__ import annotations

from upslope.config import FrozenDict
from upslope.model.config import Layer, ModelConfig, Normal, PostNorm, QKNorm, Rope
from upslope.optim.config import AdamW
from upslope.optim.schedule import Cosine
from upslope.recipes.labs.lab import Fact, Lab, Published, Training, full, swiglu


def _olmo2(size: str, depth: int, d: int, heads: int, kv: int, hidden: int, tokens: str, batch: str, lr: float, published: float) -> Lab:
    mixer = full(heads, kv, 128, Rope(base=500_000), qk_norm=QKNorm(over="full"))
    block = Layer(mixer=mixer, ffn=swiglu(hidden), norm=PostNorm())
    model = ModelConfig(
        d_model=d, blocks=FrozenDict(dense=block), pattern=(("dense", depth),), init=Normal(std=0.02), vocab=100_352, context=4096
    )
    training = Training(
        tokens,
        batch,
        f"{lr * 1e4:g}e-4, cosine, warm-up 2,000 steps; anneals linear to 0, then averaged",
        "adamw",
        "BF16, FP32 reduce",
        "z-loss 1e-5, embeddings not decayed",
        AdamW(lr=lr),
        Cosine(warmup=2000, floor=0.1),
    )
    large = size == "32B"
    facts = (
        *(() if large else (Fact("blocks.dense.norm", "C", "OLMo-core TransformerBlockType.reordered_norm"),)),
        *(() if large else (Fact("init", "C", "OLMo-core"),)),
        Fact("training.schedule.floor", "M", "a tenth; the linear anneal of stage 2 follows"),
    )
    name, source = f"olmo2_{size.lower()}", "arXiv 2501.00656; allenai/OLMo-core scripts/official/OLMo2"
    return Lab(name, "Ai2", f"OLMo 2 {size}", "2025-01", model, Published(published), training, "C" if large else "M", source, facts)


def olmo2_7b() -> Lab:
    """7B dense, fully open: norms on the branches' outputs, QK-norm over the whole projection, z-loss."""
    return _olmo2("7B", 32, 4096, 32, 32, 11_008, "4T", "1024 x 4096", 3e-4, 7.3)


def olmo2_13b() -> Lab:
    """13B dense."""
    return _olmo2("13B", 40, 5120, 40, 40, 13_824, "5T", "2048 x 4096", 9e-4, 13.7)


def olmo2_32b() -> Lab:
    """32B dense, with grouped queries."""
    return _olmo2("32B", 64, 5120, 40, 8, 27_648, "6T", "2048 x 4096", 6e-4, 32.2)
