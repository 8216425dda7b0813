"""DeepSeek: V3, R1, V3.2, V4 Pro and Flash."""

from __future__ import annotations

from upslope.config import FrozenDict
from upslope.model.config import (
    CSA,
    HCA,
    MTP,
    AuxLoss,
    BiasBalance,
    Compressed,
    Gated,
    Hashed,
    HyperConnections,
    Indexer,
    Layer,
    ModelConfig,
    MoE,
    Normal,
    Rope,
    Router,
    TopK,
    Yarn,
)
from upslope.recipes.labs.lab import Fact, Lab, Published, Training, latent, pre, stretched, swiglu, v3_experts

V3_TRAINING = Training(
    "14.8T",
    "12.6M to 62.9M tokens",
    "2.2e-4, decayed to 2.2e-5 and 7.3e-6",
    "adamw",
    "FP8 (E4M3 tiles), BF16 moments",
    "balance: bias 1e-3 (0 for the last 500B) and sequence-wise 1e-4; at most 4 nodes a token",
)


def _v3(name: str, title: str, date: str, training: Training, select: Indexer | None = None, source: str = "") -> Lab:
    mixer = latent(128, stretched(10_000, 40), select=select)
    blocks: FrozenDict[str, Layer] = FrozenDict(
        dense=pre(mixer, swiglu(18_432)), moe=pre(mixer, v3_experts(256, 8, 2048, 2.5, groups=8, keep=4))
    )
    model = ModelConfig(
        d_model=7168,
        blocks=blocks,
        pattern=(("dense", 3), ("moe", 58)),
        init=Normal(std=0.006),
        vocab=129_280,
        context=163_840,
        mtp=MTP(block="moe"),
    )
    facts = (
        Fact("init", "M", "arXiv 2412.19437 §4.2"),
        Fact("blocks.*.mixer.position.scaling", "M", "YaRN of the context extension, arXiv 2412.19437 §4.3"),
        Fact("mtp.weight", "M", "0.3 for 10T tokens, then 0.1; arXiv 2412.19437 §4.2"),
        Fact("training", "M", "arXiv 2412.19437 §4.2"),
    )
    return Lab(
        name, title, date, model, Published(671, 37), training, "C", source or "arXiv 2412.19437; transformers 5.23.0 deepseek_v3", facts
    )


def deepseek_v3() -> Lab:
    """671B-A37B: latent attention, 256 fine-grained experts balanced by a bias, MTP, FP8."""
    return _v3("deepseek_v3", "DeepSeek-V3", "2024-12", V3_TRAINING)


def deepseek_r1() -> Lab:
    """V3's architecture, post-trained by RL."""
    return _v3("deepseek_r1", "DeepSeek-R1", "2025-01", V3_TRAINING, source="arXiv 2501.12948: DeepSeek-V3-Base is the start")


def deepseek_v32() -> Lab:
    """V3.2: sparse attention by a lightning indexer, taught in continued pre-training."""
    index = Indexer(heads=64, dim=128, top_k=2048, rope=Rope(fraction=0.5, scaling=Yarn(factor=40, original=4096, temperature="none")))
    training = Training(
        "V3.1-Terminus, then 2.1B (indexer alone) and 943.7B",
        "16 x 128K, then 480 x 128K",
        "1e-3, then 7.3e-6",
        "adamw",
        "FP8",
        "1,000 steps of dense warm-up, 15,000 sparse steps",
    )
    return _v3("deepseek_v32", "DeepSeek-V3.2", "2025-12", training, index, "arXiv 2512.02556; transformers 5.23.0 deepseek_v32")


def _v4_rope(compressed: bool) -> Rope:
    scaling = Yarn(factor=16, original=65_536, temperature="none") if compressed else None
    return Rope(base=160_000 if compressed else 10_000, layout="interleaved", fraction=64 / 512, part="trailing", scaling=scaling)


def _v4(
    name: str, title: str, d: int, heads: int, q: int, groups: int, top_k: int, experts: int, hidden: int, scale: float, layers: str
) -> Lab:
    """layers: a letter per layer: w = window only, c = CSA, h = HCA; the first three are hash-routed."""
    clamped = Gated(hidden=hidden, limit=10.0)
    balance = (BiasBalance(), AuxLoss(weight=1e-4, over="sequence"))
    histories = {"w": None, "h": HCA(rate=128), "c": CSA(rate=4, index_heads=64, index_dim=128, top_k=top_k)}

    def block(letter: str, hashed: bool) -> Layer:
        router = Router(score="sqrtsoftplus", select=Hashed(k=6) if hashed else TopK(k=6), scale=scale)
        ffn = MoE(experts=experts, expert=clamped, router=router, shared=clamped, balance=() if hashed else balance)
        mixer = Compressed(
            heads=heads,
            head_dim=512,
            q_latent=q,
            window=128,
            history=histories[letter],
            position=_v4_rope(letter != "w"),
            groups=groups,
            group_dim=1024,
        )
        return Layer(mixer=mixer, ffn=ffn, residual=HyperConnections())

    names = [f"{'window' if c == 'w' else 'csa' if c == 'c' else 'hca'}_{'hash' if i < 3 else 'moe'}" for i, c in enumerate(layers)]
    blocks = {n: block(c, i < 3) for i, (c, n) in enumerate(zip(layers, names))} | {"window_moe": block("w", False)}
    model = ModelConfig(
        d_model=d,
        blocks=FrozenDict(blocks),
        pattern=tuple(names),  # type: ignore[arg-type]
        init=Normal(std=0.02),
        vocab=129_280,
        context=1_048_576,
        mtp=MTP(block="window_moe"),
    )
    training = Training(
        "32T" if name.endswith("flash") else "33T",
        "?",
        "?",
        "muon",
        "FP8, FP4-aware experts and indexer",
        "4K to 1M; dense attention for 1T tokens",
    )
    facts = (
        Fact("blocks.*.ffn.balance", "?", "bias and a sequence-wise loss are reported, their weights are not"),
        Fact("init", "?", "not public"),
        *((Fact("pattern", "?", "which of CSA and HCA comes first after the two window layers"),) if name.endswith("flash") else ()),
    )
    published = Published(284, 13) if name.endswith("flash") else Published(1600, 49)
    return Lab(name, title, "2026-04", model, published, training, "C", "arXiv 2606.19348; transformers 5.23.0 deepseek_v4", facts)


def deepseek_v4_pro() -> Lab:
    """1.6T-A49B: compressed attention in two strengths, hyper-connections, hash-routed first layers, a million tokens."""
    return _v4("deepseek_v4_pro", "DeepSeek-V4-Pro", 7168, 128, 1536, 16, 1024, 384, 3072, 2.5, "hh" + "ch" * 29 + "c")


def deepseek_v4_flash() -> Lab:
    """284B-A13B, the small V4."""
    return _v4("deepseek_v4_flash", "DeepSeek-V4-Flash", 4096, 64, 1024, 8, 512, 256, 2048, 1.5, "ww" + "ch" * 20 + "c")
