"""OpenAI: gpt-oss."""

from __future__ import annotations

from upslope.config import FrozenDict
from upslope.model.config import RMS, Gated, ModelConfig, MoE, Normal, Rope, Router, TopK, Yarn
from upslope.recipes.labs.lab import Fact, Lab, Published, Training, full, pre, unknown


def _gpt_oss(size: str, depth: int, experts: int, published: Published) -> Lab:
    rope = Rope(base=150_000, scaling=Yarn(factor=32, original=4096, truncate=False))
    local = full(64, 8, 64, rope, window=128, sinks=True, bias="all")
    expert = Gated(hidden=2880, act="swish1702", limit=7.0, bias=True)
    ffn = MoE(experts=experts, expert=expert, router=Router(score="softmax", select=TopK(k=4), bias=True))
    model = ModelConfig(
        d_model=2880,
        blocks=FrozenDict({"local": pre(local, ffn, 1e-5), "global": pre(local.replace(window=None), ffn, 1e-5)}),
        pattern=(("local", 1), ("global", 1)) * (depth // 2),
        final_norm=RMS(eps=1e-5),
        init=Normal(),
        vocab=201_088,
        context=131_072,
    )
    facts = (
        Fact("init", "?", "the released class's default"),
        Fact("blocks.*.ffn.balance", "?", "none given here: how load was balanced is not public"),
        *unknown("training.optimizer"),
        Fact("training.precision", "M", "arXiv 2508.10925"),
    )
    training = Training("?", "?", "?", "adamw", "MXFP4 expert weights, from post-training on")
    source = "arXiv 2508.10925; transformers gpt_oss"
    return Lab(f"gpt_oss_{size}", "OpenAI", f"gpt-oss-{size}", "2025-08", model, published, training, "C", source, facts)


def gpt_oss_20b() -> Lab:
    """21B-A3.6B, the small one."""
    return _gpt_oss("20b", 24, 32, Published(20.9, 3.6))


def gpt_oss_120b() -> Lab:
    """117B-A5B: sinks, windows in every other layer, biases everywhere, clamped experts."""
    return _gpt_oss("120b", 36, 128, Published(116.8, 5.1))
