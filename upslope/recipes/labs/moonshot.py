"""Moonshot: Kimi K2."""

from __future__ import annotations

from upslope.config import FrozenDict
from upslope.model.config import Layer, ModelConfig, Normal
from upslope.optim.config import Muon
from upslope.recipes.labs.lab import Fact, Lab, Published, Training, latent, pre, stretched, swiglu, unknown, v3_experts


def kimi_k2() -> Lab:
    """1.04T-A32B: V3's design, sparser, with half the heads, trained with MuonClip."""
    mixer = latent(64, stretched(50_000, 32, beta_fast=1.0, beta_slow=1.0))
    moe = v3_experts(384, 8, 2048, 2.827, sequence=0.0)
    blocks: FrozenDict[str, Layer] = FrozenDict(dense=pre(mixer, swiglu(18_432)), moe=pre(mixer, moe))
    model = ModelConfig(
        d_model=7168, blocks=blocks, pattern=(("dense", 1), ("moe", 60)), init=Normal(std=0.006), vocab=163_840, context=131_072
    )
    facts = (
        Fact("init", "M", "as DeepSeek-V3"),
        *unknown("blocks.moe.ffn.balance.0.rate", why="a bias is reported; the rate is V3's"),
        Fact("training", "M", "arXiv 2507.20534; the tail of the rate and 67M tokens are confirmed"),
    )
    training = Training(
        "15.5T",
        "67M tokens",
        "warm-up 500 steps; 2e-4 for 10T; cosine to 2e-5 over 5.5T; then 7e-6",
        "muon",
        "BF16, FP8 activation storage",
        "QK-clip at 100; zero loss spikes",
        Muon(lr=2e-4),
    )
    source = "arXiv 2507.20534; released configuration"
    return Lab("kimi_k2", "Moonshot", "Kimi K2", "2025-07", model, Published(1040, 32.6), training, "C", source, facts)
