"""MiniMax: M1 and M2."""

from __future__ import annotations

from upslope.config import FrozenDict
from upslope.model.config import (
    MTP,
    RMS,
    AuxLoss,
    BiasBalance,
    Layer,
    Lightning,
    Mixer,
    ModelConfig,
    MoE,
    Normal,
    PreNorm,
    QKNorm,
    Rope,
    Router,
    Scaled,
    TopK,
)
from upslope.optim.config import AdamW
from upslope.recipes.labs.lab import Fact, Lab, Published, Training, full, pre, swiglu, unknown


def minimax_m1() -> Lab:
    """456B-A46B: seven layers of lightning attention to one of softmax, DeepNorm, a million tokens."""
    router = Router(score="softmax", select=TopK(k=2))
    ffn = MoE(experts=32, expert=swiglu(9216), router=router, balance=(AuxLoss(weight=1e-2, over="global"),))
    residual = Scaled(mixer=(3.5566, 1.0), ffn=(3.5566, 1.0))
    mixers: dict[str, Mixer] = {
        "linear": Lightning(heads=64, head_dim=128, eps=1e-6),
        "softmax": full(64, 8, 128, Rope(base=1e7, fraction=0.5)),
    }
    model = ModelConfig(
        d_model=6144,
        blocks=FrozenDict({n: Layer(mixer=m, ffn=ffn, norm=PreNorm(eps=1e-5), residual=residual) for n, m in mixers.items()}),
        pattern=(("linear", 7), ("softmax", 1)) * 10,
        final_norm=RMS(eps=1e-5),
        init=Normal(),
        vocab=200_064,
        context=1_000_000,
    )
    facts = (
        Fact("blocks.*.residual", "M", "alpha 3.5566, beta 1; arXiv 2501.08313"),
        Fact("blocks.softmax.mixer.position", "M", "base 1e7, rope on 64 of 128 channels"),
        Fact("blocks.*.ffn.balance", "M", "aux 1e-2 with a global router; token-drop is not built here"),
        Fact("init", "?", "the released class's default"),
        Fact("training", "M", "arXiv 2501.08313, 2506.13585"),
        *unknown("training.optim.betas", "training.optim.weight_decay", why="not found"),
    )
    training = Training(
        "11.4T (Text-01) + 7.5T",
        "16M, 32M at 69B, 64M at 790B, 128M at 4.7T tokens",
        "2e-4, 1.3e-4, to 3e-5; M1: 8e-5 for 2.5T, to 8e-6 over 5T",
        "adamw",
        "BF16",
        optim=AdamW(lr=2e-4),
    )
    source = "arXiv 2506.13585; transformers minimax"
    return Lab("minimax_m1", "MiniMax", "MiniMax-M1", "2025-06", model, Published(456, 45.9), training, "C", source, facts)


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
        Fact("blocks.moe.ffn.balance", "?", "a bias with little aux loss is reported; rate and weight are not"),
        Fact("init", "?", "the released class's default"),
        Fact("mtp", "C", "one module, three in the decay phase; weight 0.3 to 0.1"),
    )
    training = Training("29.2T (19.9 constant + 9.3 decay)", "?", "WSD-like; the rates are not public", "adamw", "FP8 release")
    source = "public notes of the MiniMax-M2 report; transformers minimax_m2"
    return Lab("minimax_m2", "MiniMax", "MiniMax-M2", "2025-10", model, Published(229.9, 9.8), training, "C", source, facts)
