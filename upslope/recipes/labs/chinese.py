"""Qwen, Moonshot, Zhipu, Xiaomi, Tencent and MiniMax: Qwen3, Kimi K2, GLM-4.5, 5 and 5.2, MiMo, Hunyuan-Large, MiniMax-M1 and M2."""

from __future__ import annotations

from upslope.config import FrozenDict
from upslope.model.config import (
    MTP,
    RMS,
    AuxLoss,
    BiasBalance,
    Indexer,
    Layer,
    Lightning,
    ModelConfig,
    MoE,
    Normal,
    PreNorm,
    QKNorm,
    Reuse,
    Rope,
    Router,
    Scaled,
    Tied,
    TopK,
)
from upslope.recipes.labs.lab import Fact, Lab, Published, Training, full, latent, per_head, pre, stretched, swiglu, v3_experts


def qwen3_235b() -> Lab:
    """235B-A22B: 128 experts, none shared, balanced over the global batch; QK-norm per head."""
    router = Router(score="softmax", select=TopK(k=8))
    ffn = MoE(experts=128, expert=swiglu(1536), router=router, balance=(AuxLoss(weight=1e-3, over="global"),))
    block = pre(full(64, 4, 128, Rope(base=1e6), qk_norm=per_head()), ffn)
    model = ModelConfig(d_model=4096, blocks=FrozenDict(moe=block), pattern=(("moe", 94),), init=Normal(), vocab=151_936, context=32_768)
    facts = (
        Fact("blocks.moe.ffn.balance.0.weight", "M", "default of the released class; the global scope: arXiv 2501.11873"),
        Fact("init", "?", "not public"),
        Fact("training.tokens", "M", "arXiv 2505.09388 §3"),
    )
    training = Training("36T (30 + 5 + long context)", "?", "from scaling laws per stage, values not public", "adamw", "BF16 ?")
    return Lab(
        "qwen3_235b",
        "Qwen3-235B-A22B",
        "2025-05",
        model,
        Published(235, 22),
        training,
        "C",
        "arXiv 2505.09388; transformers qwen3_moe",
        facts,
    )


def kimi_k2() -> Lab:
    """1.04T-A32B: V3's design, sparser, with half the heads, trained with MuonClip."""
    mixer = latent(64, stretched(50_000, 32, beta_fast=1.0, beta_slow=1.0))
    blocks: FrozenDict[str, Layer] = FrozenDict(
        dense=pre(mixer, swiglu(18_432)), moe=pre(mixer, v3_experts(384, 8, 2048, 2.827, sequence=0.0))
    )
    model = ModelConfig(
        d_model=7168, blocks=blocks, pattern=(("dense", 1), ("moe", 60)), init=Normal(std=0.006), vocab=163_840, context=131_072
    )
    facts = (
        Fact("init", "?", "that of DeepSeek-V3"),
        Fact("blocks.moe.ffn.balance.0.rate", "M", "as V3"),
        Fact("training", "M", "arXiv 2507.20534"),
    )
    training = Training(
        "15.5T",
        "67M tokens",
        "2e-4 for 10T, cosine to 2e-5, then 7e-6",
        "muon",
        "BF16, FP8 activation storage",
        "QK-clip at 100; zero loss spikes",
    )
    return Lab(
        "kimi_k2", "Kimi K2", "2025-07", model, Published(1040, 32.6), training, "C", "arXiv 2507.20534; released configuration", facts
    )


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
        Fact("init", "?", "not public"),
        Fact("mtp.weight", "M", "0.3, then 0.1 after 15T"),
        Fact("training.rate", "M", "arXiv 2508.06471"),
    )
    training = Training(
        "23T (15 + 7 + 1)", "16M to 64M tokens", "2.5e-4 to 2.5e-5, cosine", "muon", "BF16", "bias 1e-3, then 0; sequence-wise 1e-4"
    )
    return Lab("glm_45", "GLM-4.5", "2025-07", model, Published(355, 32), training, "C", "arXiv 2508.06471; transformers glm4_moe", facts)


def _glm5(name: str, title: str, date: str, base: float, context: int, every: int) -> Lab:
    """every: one layer in so many has its own indexer (1 = all)."""
    rope = Rope(base=base, layout="interleaved")
    own = latent(
        64,
        rope,
        q=2048,
        nope=192,
        value=256,
        select=Indexer(heads=32, dim=128, top_k=2048, rope=Rope(base=base, layout="interleaved", fraction=0.5)),
    )
    mixers = {"full": own, "shared": own.replace(select=Reuse())}
    names = [f"{'full' if max(i - 1, 0) % every == 0 else 'shared'}_{'dense' if i < 3 else 'moe'}" for i in range(78)]
    ffns = {"dense": swiglu(12_288), "moe": v3_experts(256, 8, 2048, 2.5)}
    blocks = {n: pre(mixers[n.split("_")[0]], ffns[n.split("_")[1]], 1e-5) for n in dict.fromkeys(names)}
    model = ModelConfig(
        d_model=6144,
        blocks=FrozenDict(blocks),
        pattern=tuple(names),  # type: ignore[arg-type]
        final_norm=RMS(eps=1e-5),
        init=Normal(),
        vocab=154_880,
        context=context,
        mtp=MTP(depth=3, block="full_moe", shared=True),
    )
    facts = (Fact("init", "?", "not public"), Fact("blocks.*_moe.ffn.balance", "?", "bias as in GLM-4.5; weights not public"))
    training = Training("28.5T", "?", "?", "muon", "? (INT4-aware in SFT)", "Muon per head of the up-projections (Muon Split)")
    return Lab(name, title, date, model, Published(744, 40), training, "C", "transformers 5.23.0 glm_moe_dsa; GLM-5 report", facts)


def glm_5() -> Lab:
    """744B-A40B: latent attention with wide heads and an indexer in every layer."""
    return _glm5("glm_5", "GLM-5", "2026-02", 1e6, 202_752, 1)


def glm_52() -> Lab:
    """GLM-5 with one indexer for four layers, and a million tokens."""
    return _glm5("glm_52", "GLM-5.2", "2026-06", 8e6, 1_048_576, 4)


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
    facts = (Fact("init", "?", "not public"), Fact("mtp.weight", "?", "not found"), Fact("training", "M", "arXiv 2505.07608"))
    training = Training("25T", "up to 21M tokens", "1.07e-4 to 3e-5 to 1e-5", "adamw", "BF16")
    return Lab("mimo_7b", "MiMo-7B", "2025-05", model, Published(7.62), training, "C", "arXiv 2505.07608; released configuration", facts)


def hunyuan_large() -> Lab:
    """389B-A52B: keys and values shared by pairs of layers, one of sixteen experts beside a shared one."""
    router = Router(score="softmax", select=TopK(k=1), renorm=False)
    ffn = MoE(
        experts=16, expert=swiglu(18_304), router=router, shared=swiglu(18_304), balance=(AuxLoss(weight=1e-2, over="micro", group=1),)
    )
    own = full(80, 8, 80, Rope(base=10_000), qk_norm=QKNorm(eps=1e-5, place="after"))
    blocks: FrozenDict[str, Layer] = FrozenDict(own=pre(own, ffn, 1e-5), reuse=pre(own.replace(kv=Reuse()), ffn, 1e-5))
    model = ModelConfig(
        d_model=6400,
        blocks=blocks,
        pattern=("own", "reuse") * 32,  # type: ignore[arg-type]
        head=Tied(),
        final_norm=RMS(eps=1e-5),
        init=Normal(),
        vocab=129_024,
        context=262_144,
    )
    facts = (
        Fact("blocks.*.mixer.head_dim", "D", "80, from the 52B active parameters"),
        Fact("blocks.*.ffn.router.renorm", "?", "with one expert a renormalised weight is 1"),
        Fact("blocks.*.ffn.balance", "?", "a load-balancing loss with capacity and recycle routing, which is not built here"),
        Fact("init", "?", "not public"),
        Fact("blocks.*.mixer.position", "M", "dynamic NTK for 256K is not built here"),
    )
    training = Training("7T (1.5T synthetic)", "?", "three phases; experts at 0.31 of the rate", "adamw", "BF16")
    return Lab("hunyuan_large", "Hunyuan-Large", "2024-11", model, Published(389, 52), training, "M", "arXiv 2411.02265", facts)


def minimax_m1() -> Lab:
    """456B-A46B: seven layers of lightning attention to one of softmax, DeepNorm, a million tokens."""
    router = Router(score="softmax", select=TopK(k=2))
    ffn = MoE(experts=32, expert=swiglu(9216), router=router, balance=(AuxLoss(weight=1e-2, over="global"),))
    residual = Scaled(mixer=(3.5566, 1.0), ffn=(3.5566, 1.0))
    softmax = full(64, 8, 128, Rope(base=1e7, fraction=0.5))
    blocks: FrozenDict[str, Layer] = FrozenDict(
        linear=Layer(mixer=Lightning(heads=64, head_dim=128, eps=1e-6), ffn=ffn, norm=PreNorm(eps=1e-5), residual=residual),
        softmax=Layer(mixer=softmax, ffn=ffn, norm=PreNorm(eps=1e-5), residual=residual),
    )
    model = ModelConfig(
        d_model=6144,
        blocks=blocks,
        pattern=(("linear", 7), ("softmax", 1)) * 10,
        final_norm=RMS(eps=1e-5),
        init=Normal(),
        vocab=200_064,
        context=1_000_000,
    )
    facts = (
        Fact("blocks.*.residual", "M", "alpha 3.5566, beta 1; arXiv 2501.08313"),
        Fact("blocks.*.ffn.balance", "M", "aux 1e-2 with a global router; token-drop is not built here"),
        Fact("init", "?", "not public"),
        Fact("training", "M", "arXiv 2501.08313, 2506.13585"),
    )
    training = Training("11.4T (Text-01) + 7.5T", "16M to 128M tokens", "2e-4, 1.3e-4, to 3e-5; M1: 8e-5 to 8e-6", "adamw", "BF16")
    return Lab(
        "minimax_m1", "MiniMax-M1", "2025-06", model, Published(456, 45.9), training, "C", "arXiv 2506.13585; transformers minimax", facts
    )


def minimax_m2() -> Lab:
    """230B-A10B: back to full attention, QK-norm over the whole projection, 256 experts balanced by a bias."""
    router = Router(score="sigmoid", select=TopK(k=8))
    ffn = MoE(experts=256, expert=swiglu(1536), router=router, balance=(BiasBalance(),))
    block = pre(full(48, 8, 128, Rope(base=5e6, fraction=0.5), qk_norm=QKNorm(over="full")), ffn)
    model = ModelConfig(
        d_model=3072,
        blocks=FrozenDict(moe=block),
        pattern=(("moe", 62),),
        init=Normal(),
        vocab=200_064,
        context=196_608,
        mtp=MTP(block="moe"),
    )
    facts = (
        Fact("blocks.moe.ffn.balance.0.rate", "?", "a bias with little aux loss; the rate is not public"),
        Fact("init", "?", "not public"),
        Fact("mtp", "C", "one module, three in the decay phase; weight 0.3 to 0.1"),
    )
    training = Training("29.2T (19.9 + 9.3 decay)", "?", "WSD-like", "adamw", "FP8 release")
    return Lab(
        "minimax_m2",
        "MiniMax-M2",
        "2025-10",
        model,
        Published(229.9, 9.8),
        training,
        "C",
        "MiniMax-M2 report; transformers minimax_m2",
        facts,
    )
