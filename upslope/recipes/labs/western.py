"""Microsoft AI, Meta, Google, Ai2, NVIDIA, OpenAI: MAI-Thinking-1, Llama 3, Gemma 2 and 3, OLMo 2, Nemotron 3, gpt-oss."""

from __future__ import annotations

from upslope.config import FrozenDict
from upslope.model.config import (
    MTP,
    RMS,
    AuxLoss,
    BiasBalance,
    DepthScaled,
    Gated,
    Layer,
    Llama3,
    Mamba2,
    ModelConfig,
    MoE,
    Nope,
    Normal,
    Nothing,
    PostNorm,
    QKNorm,
    Rope,
    Router,
    SandwichNorm,
    Tied,
    TopK,
    Yarn,
)
from upslope.model.config import Linear as Interpolated
from upslope.recipes.labs.lab import Fact, Lab, Published, Training, full, pattern, per_head, pre, relu2, swiglu


def mai_thinking_1() -> Lab:
    """962B-A35B: dense and very sparse layers in turn, latent experts, five local layers to one global without position."""
    router = Router(score="softmax", select=TopK(k=8))
    sparse = MoE(experts=512, expert=swiglu(5120), router=router, latent=3072, balance=(AuxLoss(weight=1e-3, over="global"),))
    local = full(48, 8, 128, Rope(), window=512, qk_norm=per_head())
    wide = local.replace(position=Nope(), window=None)
    blocks: FrozenDict[str, Layer] = FrozenDict(
        local_dense=pre(local, swiglu(13_312)), local_moe=pre(local, sparse), global_moe=pre(wide, sparse)
    )
    model = ModelConfig(
        d_model=6656,
        blocks=blocks,
        pattern=("local_dense", "local_moe", "local_dense", "local_moe", "local_dense", "global_moe") * 13,  # type: ignore[arg-type]
        init=Normal(zero=("mixer",)),
        vocab=200_019,
        context=262_144,
    )
    facts = (
        Fact("d_model", "D", "6656 by arithmetic; a public note prints 6,652"),
        Fact(
            "blocks.*.mixer.heads",
            "?",
            "48 heads of 128: 52 would make heads x head_dim = d_model, but is no multiple of the 8 key-value heads",
        ),
        Fact("blocks.*.ffn.expert.hidden", "D", "5120 gives the total within 0.3 %; 10,240 fused is reported"),
        Fact("blocks.local_*.mixer.position.base", "?", "not public"),
        Fact("blocks.*.ffn.router", "?", "softmax; the score is not public, nor a scale"),
        Fact("blocks.*.ffn.balance", "?", "a GShard loss over the global batch; its weight in pre-training is not public"),
        Fact("pattern", "?", "39 dense and 39 sparse in turn, 5:1 local to global; how the two line up is not public"),
        Fact("init.std", "?", "zero attention output is reported, the rest is not"),
    )
    training = Training(
        "30T + 3.4T + 0.15T", "134M tokens", "?", "adamw", "FP8, sensitive paths in high precision", "dropless, global-batch balance"
    )
    return Lab(
        "mai_thinking_1", "MAI-Thinking-1", "2026-06", model, Published(962, 35), training, "C", "public notes of the MAI report", facts
    )


def _llama3(name: str, size: str, depth: int, d: int, heads: int, hidden: int, published: float, rate: str) -> Lab:
    rope = Rope(base=500_000, scaling=Llama3())
    block = pre(full(heads, 8, 128, rope), swiglu(hidden), 1e-5)
    model = ModelConfig(
        d_model=d,
        blocks=FrozenDict(dense=block),
        pattern=(("dense", depth),),
        final_norm=RMS(eps=1e-5),
        init=Normal(),
        vocab=128_256,
        context=131_072,
    )
    training = Training("15.6T", "4M to 8M to 16M tokens (405B)", rate, "adamw", "BF16, FP32 gradient accumulation")
    facts = (Fact("init", "?", "not stated"),)
    return Lab(name, f"Llama 3 {size}", "2024-07", model, Published(published), training, "M", "arXiv 2407.21783", facts)


def llama3_8b() -> Lab:
    """8B dense: GQA, SwiGLU, rope base 500,000."""
    return _llama3("llama3_8b", "8B", 32, 4096, 32, 14_336, 8.03, "3e-4, cosine")


def llama3_70b() -> Lab:
    """70B dense."""
    return _llama3("llama3_70b", "70B", 80, 8192, 64, 28_672, 70.6, "1.5e-4, cosine")


def llama3_405b() -> Lab:
    """405B dense."""
    return _llama3("llama3_405b", "405B", 126, 16_384, 128, 53_248, 405, "8e-5 to 8e-7, cosine, warm-up 8,000")


def gemma3_27b() -> Lab:
    """27B dense: five local layers to one global, QK-norm, norms on both sides, distilled."""
    qk = QKNorm(gain="zero")
    scale = (5376 / 32) ** -0.5
    local = full(32, 16, 128, Rope(base=10_000), window=1024, qk_norm=qk, scale=scale)
    wide = full(32, 16, 128, Rope(base=1e6, scaling=Interpolated(factor=8)), qk_norm=qk, scale=scale)
    ffn, norm = Gated(hidden=21_504, act="gelu"), SandwichNorm(gain="zero")
    model = ModelConfig(
        d_model=5376,
        blocks=FrozenDict({"local": Layer(mixer=local, ffn=ffn, norm=norm), "global": Layer(mixer=wide, ffn=ffn, norm=norm)}),
        pattern=(("local", 5), ("global", 1)) * 10 + (("local", 2),),
        head=Tied(),
        final_norm=RMS(gain="zero"),
        init=Normal(),
        vocab=262_144,
        context=131_072,
        embed_scale="sqrt_d",
    )
    facts = (Fact("init", "?", "not public"), Fact("pattern", "C", "layer i is global iff (i + 1) % 6 == 0; transformers gemma3"))
    training = Training("14T", "?", "? (distillation, 256 sampled teacher logits)", "adamw", "BF16")
    return Lab("gemma3_27b", "Gemma 3 27B", "2025-03", model, Published(27), training, "M", "arXiv 2503.19786", facts)


def gemma2_2b() -> Lab:
    """2B dense: soft-caps on attention and output logits, local and global in turn."""
    local = full(8, 4, 256, Rope(), window=4096, softcap=50.0, scale=256**-0.5)
    ffn, norm = Gated(hidden=9216, act="gelu"), SandwichNorm(gain="zero")
    blocks = {"local": Layer(mixer=local, ffn=ffn, norm=norm), "global": Layer(mixer=local.replace(window=None), ffn=ffn, norm=norm)}
    model = ModelConfig(
        d_model=2304,
        blocks=FrozenDict(blocks),
        pattern=("local", "global") * 13,  # type: ignore[arg-type]
        head=Tied(),
        final_norm=RMS(gain="zero"),
        init=Normal(),
        vocab=256_000,
        context=8192,
        embed_scale="sqrt_d",
        logit_softcap=30.0,
    )
    training = Training("2T (distilled)", "?", "?", "adamw", "BF16")
    facts = (Fact("init", "?", "not public"), Fact("training.tokens", "M", "arXiv 2408.00118"))
    return Lab("gemma2_2b", "Gemma 2 2B", "2024-07", model, Published(2.61), training, "C", "transformers 5.23.0 gemma2 defaults", facts)


def _olmo2(name: str, size: str, depth: int, d: int, heads: int, kv: int, hidden: int, training: Training, published: float) -> Lab:
    mixer = full(heads, kv, 128, Rope(base=500_000), qk_norm=QKNorm(over="full"))
    block = Layer(mixer=mixer, ffn=swiglu(hidden), norm=PostNorm())
    model = ModelConfig(
        d_model=d, blocks=FrozenDict(dense=block), pattern=(("dense", depth),), init=Normal(std=0.02), vocab=100_352, context=4096
    )
    mark, facts = ("C", ()) if size == "32B" else ("M", (Fact("blocks.dense.norm", "C", "OLMo-core TransformerBlockType.reordered_norm"),))
    return Lab(name, f"OLMo 2 {size}", "2025-01", model, Published(published), training, mark, "arXiv 2501.00656; OLMo-core", facts)  # type: ignore[arg-type]


def olmo2_7b() -> Lab:
    """7B dense, fully open: norms on the branches' outputs, QK-norm over the whole projection, z-loss."""
    training = Training(
        "4T", "1024 x 4096", "3e-4, cosine, then to 0", "adamw", "BF16, FP32 reduce", "z-loss 1e-5, eps 1e-8, embeddings not decayed"
    )
    return _olmo2("olmo2_7b", "7B", 32, 4096, 32, 32, 11_008, training, 7.3)


def olmo2_13b() -> Lab:
    """13B dense."""
    training = Training("5T", "2048 x 4096", "9e-4, cosine, then to 0", "adamw", "BF16, FP32 reduce", "z-loss 1e-5")
    return _olmo2("olmo2_13b", "13B", 40, 5120, 40, 40, 13_824, training, 13.7)


def olmo2_32b() -> Lab:
    """32B dense, with grouped queries."""
    training = Training("6T", "2048 x 4096", "6e-4, cosine, warm-up 2,000, then to 0", "adamw", "BF16, FP32 reduce", "z-loss 1e-5")
    return _olmo2("olmo2_32b", "32B", 64, 5120, 40, 8, 27_648, training, 32.2)


def _nemotron(
    name: str, title: str, d: int, layers: str, heads: int, mamba: int, ffn: MoE, published: Published, training: Training, *facts: Fact
) -> Lab:
    blocks = {
        "mamba": pre(Mamba2(heads=mamba, head_dim=64, state=128, groups=8), Nothing(), 1e-5),
        "moe": pre(Nothing(), ffn, 1e-5),
        "softmax": pre(full(heads, 2, 128, Rope()).replace(position=Nope()), Nothing(), 1e-5),
    }
    model = ModelConfig(
        d_model=d,
        blocks=FrozenDict(blocks),
        pattern=pattern({"M": "mamba", "E": "moe", "*": "softmax"}, layers),  # type: ignore[arg-type]
        final_norm=RMS(eps=1e-5),
        init=DepthScaled(),
        vocab=131_072,
        context=262_144 if name.endswith("nano") else 1_048_576,
        mtp=None if name.endswith("nano") else MTP(depth=2, block="moe", shared=True),
    )
    scale = Fact("blocks.moe.ffn.router.scale", "?", "2.5, as in the model of this router's design")
    return Lab(
        name, title, "2025-12", model, published, training, "C", "NVIDIA-NeMo/Nemotron docs; transformers nemotron_h", (scale, *facts)
    )


def _nemotron_experts(experts: int, k: int, hidden: int, shared: int, narrow: int | None) -> MoE:
    router = Router(score="sigmoid", select=TopK(k=k), scale=2.5)
    balance = (BiasBalance(rate=1e-3), AuxLoss(weight=1e-4, over="global"))
    return MoE(experts=experts, expert=relu2(hidden), router=router, shared=relu2(shared), latent=narrow, balance=balance)


def nemotron3_nano() -> Lab:
    """31.6B-A3.6B: 23 Mamba-2, 23 sparse and 6 attention layers, squared ReLU, no position at all."""
    layers = "MEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEMEM*EMEMEMEME"
    training = Training("25T", "3072 x 8192", "1e-3 to 1e-5, WSD", "adamw", "BF16", "bias 1e-3 and aux 1e-4")
    ffn = _nemotron_experts(128, 6, 1856, 3712, None)
    return _nemotron("nemotron3_nano", "Nemotron 3 Nano", 2688, layers, 32, 64, ffn, Published(31.6, 3.6), training)


def nemotron3_super() -> Lab:
    """120B-A12B: latent experts, 22 of 512, trained in NVFP4."""
    training = Training("25T", "3072 x 8192", "4.5e-4 to 4.5e-6, WSD, minus-sqrt decay", "adamw", "NVFP4", "bias 1e-3 and aux 1e-4")
    order = Fact("pattern", "?", "40 Mamba-2, 40 sparse, 8 attention layers; their order is filled in as in Nano")
    mtp = Fact("mtp.block", "?", "what a module's block is made of")
    ffn = _nemotron_experts(512, 22, 2688, 5376, 1024)
    return _nemotron(
        "nemotron3_super", "Nemotron 3 Super", 4096, "MEMEM*EMEME" * 8, 32, 128, ffn, Published(120.6, 12.7), training, order, mtp
    )


def nemotron3_ultra() -> Lab:
    """550B-A55B, the large one."""
    training = Training("20T", "?", "WSD ?", "adamw", "NVFP4", "bias 1e-3 and aux 1e-4 as Nano")
    facts = (
        Fact("pattern", "?", "48 Mamba-2, 48 sparse, 12 attention of 108 layers"),
        Fact("blocks.softmax.mixer.heads", "?", "64 / 2"),
        Fact("blocks.mamba.mixer.heads", "?", "256 of 64"),
        Fact("blocks.moe.ffn.expert.hidden", "?", "5120, from the total"),
        Fact("blocks.moe.ffn.shared.hidden", "?", "10,240, twice an expert"),
        Fact("mtp.block", "?", "what a module's block is made of"),
    )
    ffn = _nemotron_experts(512, 22, 5120, 10_240, 2048)
    return _nemotron("nemotron3_ultra", "Nemotron 3 Ultra", 8192, "MEMEM*EME" * 12, 64, 256, ffn, Published(550, 55), training, *facts)


def _gpt_oss(name: str, size: str, depth: int, experts: int, published: Published) -> Lab:
    rope = Rope(base=150_000, scaling=Yarn(factor=32, original=4096, truncate=False))
    local = full(64, 8, 64, rope, window=128, sinks=True, bias="all")
    expert = Gated(hidden=2880, act="swish1702", limit=7.0, bias=True)
    ffn = MoE(experts=experts, expert=expert, router=Router(score="softmax", select=TopK(k=4), bias=True))
    blocks = {"local": pre(local, ffn, 1e-5), "global": pre(local.replace(window=None), ffn, 1e-5)}
    model = ModelConfig(
        d_model=2880,
        blocks=FrozenDict(blocks),
        pattern=("local", "global") * (depth // 2),  # type: ignore[arg-type]
        final_norm=RMS(eps=1e-5),
        init=Normal(),
        vocab=201_088,
        context=131_072,
    )
    training = Training("?", "?", "?", "adamw", "MXFP4 expert weights in post-training")
    facts = (Fact("init", "?", "not public"), Fact("blocks.*.ffn.balance", "?", "none given: how load was balanced is not public"))
    return Lab(name, f"gpt-oss-{size}", "2025-08", model, published, training, "C", "arXiv 2508.10925; transformers gpt_oss", facts)


def gpt_oss_120b() -> Lab:
    """117B-A5B: sinks, windows in every other layer, biases everywhere, clamped experts."""
    return _gpt_oss("gpt_oss_120b", "120b", 36, 128, Published(116.8, 5.1))


def gpt_oss_20b() -> Lab:
    """21B-A3.6B, the small one."""
    return _gpt_oss("gpt_oss_20b", "20b", 24, 32, Published(20.9, 3.6))
