"""Alibaba: Qwen3."""

from __future__ import annotations

from upslope.config import FrozenDict
from upslope.model.config import AuxLoss, ModelConfig, MoE, Normal, Rope, Router, TopK
from upslope.recipes.labs.lab import Fact, Lab, Published, Training, full, per_head, pre, swiglu


def qwen3_235b() -> Lab:
    """235B-A22B: 128 experts, none shared, balanced over the global batch; QK-norm per head."""
    router = Router(score="softmax", select=TopK(k=8))
    ffn = MoE(experts=128, expert=swiglu(1536), router=router, balance=(AuxLoss(weight=1e-3, over="global"),))
    block = pre(full(64, 4, 128, Rope(base=1e6), qk_norm=per_head()), ffn)
    model = ModelConfig(d_model=4096, blocks=FrozenDict(moe=block), pattern=(("moe", 94),), init=Normal(), vocab=151_936, context=32_768)
    facts = (
        Fact("blocks.moe.ffn.balance", "M", "the released class's weight; over the global batch: arXiv 2501.11873"),
        Fact("blocks.moe.mixer.position.base", "M", "1e4, raised to 1e6 for the long-context stage"),
        Fact("context", "M", "32K trained; 131K by YaRN at inference"),
        Fact("init", "?", "the released class's default"),
        Fact("training.tokens", "M", "arXiv 2505.09388 §3"),
        Fact("training.precision", "?", "not stated"),
    )
    training = Training("36T (30 + 5 + long context)", "?", "per stage from scaling laws, values not public", "adamw", "BF16")
    source = "arXiv 2505.09388; transformers qwen3_moe"
    return Lab("qwen3_235b", "Alibaba", "Qwen3-235B-A22B", "2025-05", model, Published(235, 22), training, "C", source, facts)
