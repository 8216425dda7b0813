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
from upslope.optim.config import AdamW
from upslope.recipes.labs.lab import Fact, Lab, Published, Training, latent, pre, stretched, swiglu, unknown, v3_experts

V3_TRAINING = Training(
    "14.8T",
    "12.6M to 62.9M tokens over the first 469B",
    "warm-up 2,000 steps; 2.2e-4 for 10T; cosine to 2.2e-5 over 4.3T; 2.2e-5 for 333B; 7.3e-6 for 167B",
    "adamw",
    "FP8 (E4M3 tiles), BF16 moments",
    "balance: bias 1e-3 (0 for the last 500B) and sequence-wise 1e-4; at most 4 nodes a token",
    AdamW(lr=2.2e-4),
)


def _v3(name: str, title: str, date: str, training: Training, source: str, *facts: Fact, select: Indexer | None = None) -> Lab:
    mixer = latent(128, stretched(10_000, 40), select=select)
    moe = v3_experts(256, 8, 2048, 2.5, groups=8, keep=4)
    blocks: FrozenDict[str, Layer] = FrozenDict(dense=pre(mixer, swiglu(18_432)), moe=pre(mixer, moe))
    model = ModelConfig(
        d_model=7168,
        blocks=blocks,
        pattern=(("dense", 3), ("moe", 58)),
        init=Normal(std=0.006),
        vocab=129_280,
        context=163_840,
        mtp=MTP(block="moe"),
    )
    v3 = "arXiv 2412.19437"
    common = (
        Fact("init", "M", f"{v3} §4.2"),
        Fact("context", "D", "YaRN's factor x original; trained to 128K"),
        Fact("blocks.*.mixer.position.scaling", "M", f"YaRN of the context extension, {v3} §4.3"),
        Fact("blocks.moe.ffn.balance", "M", f"{v3} §4.2"),
        Fact("mtp.weight", "M", f"0.3 for 10T tokens, then 0.1; {v3} §4.2"),
    )
    return Lab(name, "DeepSeek", title, date, model, Published(671, 37), training, "C", source, (*common, *facts))


def deepseek_v3() -> Lab:
    """671B-A37B: latent attention, 256 fine-grained experts balanced by a bias, MTP, FP8."""
    source = "arXiv 2412.19437; transformers deepseek_v3"
    return _v3("deepseek_v3", "DeepSeek-V3", "2024-12", V3_TRAINING, source, Fact("training", "M", "arXiv 2412.19437 §4.2"))


def deepseek_r1() -> Lab:
    """V3's architecture and base, post-trained by RL."""
    source = "arXiv 2501.12948: DeepSeek-V3-Base is the start"
    return _v3("deepseek_r1", "DeepSeek-R1", "2025-01", V3_TRAINING, source, Fact("training", "M", "V3's, arXiv 2412.19437 §4.2"))


def deepseek_v32() -> Lab:
    """V3.2: sparse attention by a lightning indexer, taught in continued pre-training."""
    rope = Rope(fraction=0.5, scaling=Yarn(factor=40, original=4096, temperature="none"))
    training = Training(
        "V3.1-Terminus, then 2.1B (indexer alone) and 943.7B",
        "16 x 128K, then 480 x 128K",
        "1e-3, then 7.3e-6",
        "adamw",
        "FP8",
        "1,000 steps of dense warm-up, 15,000 sparse steps",
    )
    facts = (
        Fact("blocks.*.mixer.select.loss", "D", "the indexer learns from this loss alone, so its weight acts as a learning rate"),
        Fact("mtp", "M", "as V3"),
        Fact("training.optimizer", "M", "as V3"),
        Fact("training.precision", "M", "as V3"),
    )
    source = "arXiv 2512.02556; transformers deepseek_v32"
    select = Indexer(heads=64, dim=128, top_k=2048, rope=rope)
    return _v3("deepseek_v32", "DeepSeek-V3.2", "2025-12", training, source, *facts, select=select)


def _v4_blocks(layers: str, heads: int, q: int, groups: int, top_k: int, experts: int, hidden: int, scale: float) -> dict[str, Layer]:
    """layers: a letter per layer: w = window only, c = CSA, h = HCA; the first three are hash-routed. The last block is MTP's."""
    clamped = Gated(hidden=hidden, limit=10.0)
    balance = (BiasBalance(), AuxLoss(weight=1e-4, over="sequence"))
    histories = {"w": None, "h": HCA(rate=128), "c": CSA(rate=4, index_heads=64, index_dim=128, top_k=top_k)}
    near = Rope(base=10_000, layout="interleaved", fraction=64 / 512, part="trailing")
    far = near.replace(base=160_000, scaling=Yarn(factor=16, original=65_536, temperature="none"))

    def block(letter: str, hashed: bool) -> Layer:
        router = Router(score="sqrtsoftplus", select=Hashed(k=6) if hashed else TopK(k=6), scale=scale)
        ffn = MoE(experts=experts, expert=clamped, router=router, shared=clamped, balance=() if hashed else balance)
        mixer = Compressed(
            heads=heads,
            head_dim=512,
            q_latent=q,
            window=128,
            history=histories[letter],
            position=near if letter == "w" else far,
            groups=groups,
            group_dim=1024,
        )
        return Layer(mixer=mixer, ffn=ffn, residual=HyperConnections())

    return {_v4_name(i, c): block(c, i < 3) for i, c in enumerate(layers)} | {"window_moe": block("w", False)}


def _v4_name(layer: int, letter: str) -> str:
    return f"{ {'w': 'window', 'c': 'csa', 'h': 'hca'}[letter] }_{'hash' if layer < 3 else 'moe'}"


def _v4(name: str, title: str, d: int, layers: str, blocks: dict[str, Layer], published: Published, tokens: str, *facts: Fact) -> Lab:
    model = ModelConfig.model_validate(
        {
            "d_model": d,
            "blocks": blocks,
            "pattern": tuple(_v4_name(i, c) for i, c in enumerate(layers)),
            "init": Normal(std=0.02),
            "vocab": 129_280,
            "context": 1_048_576,
            "mtp": MTP(block="window_moe"),
        }
    )
    training = Training(
        tokens, "?", "?", "muon", "FP8, FP4-aware experts and indexer", "4K to 1M; dense attention for 1T tokens; 8 + 2 Newton-Schulz steps"
    )
    common = (
        Fact("blocks.*.ffn.balance", "?", "a bias and a sequence-wise loss are reported, their weights are not"),
        Fact("init", "?", "the released class's default"),
        Fact("mtp.block", "D", "the list of compression rates ends in one 0 more than there are layers"),
        *unknown("mtp.weight"),
    )
    source = "arXiv 2606.19348; transformers deepseek_v4"
    return Lab(name, "DeepSeek", title, "2026-04", model, published, training, "C", source, (*common, *facts))


def deepseek_v4_pro() -> Lab:
    """1.6T-A49B: compressed attention in two strengths, hyper-connections, hash-routed first layers, a million tokens."""
    layers = "hh" + "ch" * 29 + "c"
    blocks = _v4_blocks(layers, heads=128, q=1536, groups=16, top_k=1024, experts=384, hidden=3072, scale=2.5)
    return _v4("deepseek_v4_pro", "DeepSeek-V4-Pro", 7168, layers, blocks, Published(1600, 49), "33T")


def deepseek_v4_flash() -> Lab:
    """284B-A13B, the small V4: its first two layers see a window alone."""
    layers = "ww" + "ch" * 20 + "c"
    blocks = _v4_blocks(layers, heads=64, q=1024, groups=8, top_k=512, experts=256, hidden=2048, scale=1.5)
    order = Fact("pattern", "?", "which of CSA and HCA comes first after the two window layers; as in Pro")
    return _v4("deepseek_v4_flash", "DeepSeek-V4-Flash", 4096, layers, blocks, Published(284, 13), "32T", order)
