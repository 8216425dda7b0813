"""Zhipu: GLM-4.5, 5 and 5.2."""

from __future__ import annotations

from upslope.config import FrozenDict
from upslope.model.config import MTP, RMS, Indexer, Layer, ModelConfig, Normal, Reuse, Rope
from upslope.optim.config import Muon
from upslope.optim.schedule import Cosine
from upslope.recipes.labs.lab import Fact, Lab, Published, Training, full, latent, per_head, pre, swiglu, unknown, v3_experts


def glm_45() -> Lab:
    """355B-A32B: deeper and narrower, rope on half of each head, QK-norm, Muon."""
    mixer = full(96, 8, 128, Rope(base=1e6, fraction=0.5), qk_norm=per_head(1e-5), bias="qkv")
    blocks: FrozenDict[str, Layer] = FrozenDict(dense=pre(mixer, swiglu(12_288), 1e-5), moe=pre(mixer, v3_experts(160, 8, 1536, 2.5), 1e-5))
    model = ModelConfig(
        d_model=5120,
        blocks=blocks,
        pattern=(("dense", 3), ("moe", 89)),
        final_norm=RMS(eps=1e-5),
        init=Normal(),
        vocab=151_552,
        context=131_072,
        mtp=MTP(block="moe"),
    )
    facts = (
        Fact("init", "?", "the released class's default"),
        Fact("blocks.moe.ffn.balance", "M", "bias 1e-3 for 15T, then 0; sequence-wise 1e-4"),
        Fact("mtp", "M", "weight 0.3, 0.1 after 15T"),
        Fact("training.rate", "M", "arXiv 2508.06471; the cosine is confirmed"),
        Fact("training.optim", "M", "arXiv 2508.06471; Muon is confirmed"),
        Fact("training.precision", "M", "arXiv 2508.06471"),
        *unknown("training.optim.weight_decay", "training.schedule.warmup", why="not found"),
    )
    training = Training(
        "23T (15 + 7 + 1)",
        "16M to 64M tokens over 500B",
        "2.5e-4 to 2.5e-5, cosine",
        "muon",
        "BF16",
        "cosine, since WSD underfit in its stable phase",
        Muon(lr=2.5e-4),
        Cosine(floor=0.1),
    )
    source = "arXiv 2508.06471; transformers glm4_moe"
    return Lab("glm_45", "Zhipu", "GLM-4.5", "2025-07", model, Published(355, 32), training, "C", source, facts)


def _glm5(name: str, title: str, date: str, base: float, context: int, every: int) -> Lab:
    """every: one layer in so many has its own indexer (1 = all)."""
    rope = Rope(base=base, layout="interleaved")
    select = Indexer(heads=32, dim=128, top_k=2048, rope=rope.replace(fraction=0.5))
    own = latent(64, rope, q=2048, nope=192, value=256, select=select)
    mixers = {"full": own, "shared": own.replace(select=Reuse())}
    ffns = {"dense": swiglu(12_288), "moe": v3_experts(256, 8, 2048, 2.5)}
    names = [f"{'full' if max(i - 1, 0) % every == 0 else 'shared'}_{'dense' if i < 3 else 'moe'}" for i in range(78)]
    model = ModelConfig.model_validate(
        {
            "d_model": 6144,
            "blocks": {n: pre(mixers[n.split("_")[0]], ffns[n.split("_")[1]], 1e-5) for n in dict.fromkeys(names)},
            "pattern": tuple(names),
            "final_norm": RMS(eps=1e-5),
            "init": Normal(),
            "vocab": 154_880,
            "context": context,
            "mtp": MTP(depth=3, block="full_moe", shared=True),
        }
    )
    facts = (
        Fact("init", "?", "the released class's default"),
        Fact("blocks.*_moe.ffn.balance", "?", "a bias is reported; its rate and the sequence-wise loss are GLM-4.5's"),
        Fact("blocks.*.mixer.select.loss", "D", "the indexer learns from this loss alone, so its weight acts as a learning rate"),
        *unknown("mtp.weight"),
    )
    training = Training("28.5T", "?", "?", "muon", "? (INT4-aware in SFT)", "Muon per head of the up-projections (Muon Split)")
    source = "transformers glm_moe_dsa; THUDM/slime scripts/models; public notes of the GLM-5 report"
    return Lab(name, "Zhipu", title, date, model, Published(744, 40), training, "C", source, facts)


def glm_5() -> Lab:
    """744B-A40B: latent attention with wide heads and an indexer in every layer."""
    return _glm5("glm_5", "GLM-5", "2026-02", 1e6, 202_752, 1)


def glm_52() -> Lab:
    """GLM-5 with one indexer for four layers, and a million tokens."""
    return _glm5("glm_52", "GLM-5.2", "2026-06", 8e6, 1_048_576, 4)
