"""Meta: Llama 3."""

from __future__ import annotations

from upslope.config import FrozenDict
from upslope.model.config import RMS, Llama3, ModelConfig, Normal, Rope
from upslope.optim.config import AdamW
from upslope.optim.schedule import Cosine
from upslope.recipes.labs.lab import Fact, Lab, Published, Training, full, pre, swiglu


def _llama3(size: str, depth: int, d: int, heads: int, hidden: int, published: float, lr: float) -> Lab:
    block = pre(full(heads, 8, 128, Rope(base=500_000, scaling=Llama3())), swiglu(hidden), 1e-5)
    model = ModelConfig(
        d_model=d,
        blocks=FrozenDict(dense=block),
        pattern=(("dense", depth),),
        final_norm=RMS(eps=1e-5),
        init=Normal(),
        vocab=128_256,
        context=131_072,
    )
    training = Training(
        "15.6T",
        "4M, 8M after 252M, 16M after 2.87T tokens (405B)",
        f"{lr * 1e4:g}e-4 to a hundredth, cosine, warm-up 8,000 steps",
        "adamw",
        "BF16, FP32 gradient accumulation",
        optim=AdamW(lr=lr),
        schedule=Cosine(warmup=8000, floor=0.01),
    )
    facts = (
        Fact("init", "?", "not stated"),
        Fact("blocks.dense.mixer.position.scaling", "M", "of the 3.1 release, which stretches 8K to 128K"),
        *((Fact("training.schedule", "?", "stated for 405B"),) if size != "405B" else ()),
    )
    name = f"llama3_{size.lower()}"
    return Lab(name, "Meta", f"Llama 3 {size}", "2024-07", model, Published(published), training, "M", "arXiv 2407.21783", facts)


def llama3_8b() -> Lab:
    """8B dense: GQA, SwiGLU, rope base 500,000."""
    return _llama3("8B", 32, 4096, 32, 14_336, 8.03, 3e-4)


def llama3_70b() -> Lab:
    """70B dense."""
    return _llama3("70B", 80, 8192, 64, 28_672, 70.6, 1.5e-4)


def llama3_405b() -> Lab:
    """405B dense."""
    return _llama3("405B", 126, 16_384, 128, 53_248, 405, 8e-5)
