"""NVIDIA: Nemotron 3 Nano, Super and Ultra."""

from __future__ import annotations

from upslope.model.config import MTP, RMS, AuxLoss, BiasBalance, DepthScaled, Mamba2, ModelConfig, MoE, Nope, Nothing, Router, TopK
from upslope.optim.config import AdamW
from upslope.optim.schedule import WSD
from upslope.recipes.labs.lab import Fact, Lab, Published, Training, full, pattern, pre, relu2, unknown

LETTERS = {"M": "mamba", "E": "moe", "*": "softmax"}


def _nemotron(
    size: str, d: int, layers: str, heads: int, mamba: int, ffn: MoE, mtp: bool, published: Published, training: Training, *facts: Fact
) -> Lab:
    blocks = {
        "mamba": pre(Mamba2(heads=mamba, head_dim=64, state=128, groups=8), Nothing(), 1e-5),
        "moe": pre(Nothing(), ffn, 1e-5),
        "softmax": pre(full(heads, 2, 128, Nope()), Nothing(), 1e-5),
    }
    model = ModelConfig.model_validate(
        {
            "d_model": d,
            "blocks": blocks,
            "pattern": pattern(LETTERS, layers),
            "final_norm": RMS(eps=1e-5),
            "init": DepthScaled(),
            "vocab": 131_072,
            "context": 1_048_576 if mtp else 262_144,
            "mtp": MTP(depth=2, block="moe", shared=True) if mtp else None,
        }
    )
    block = Fact("mtp.block", "?", "the released class's default is attention and experts, as two blocks; here experts alone")
    common = (
        Fact("blocks.moe.ffn.router.scale", "?", "2.5, as in the model of this router's design"),
        Fact("blocks.moe.ffn.balance.1.over", "?", "a standard aux loss is reported, over which tokens is not"),
        Fact("init.std", "C", "transformers nemotron_h"),
        *((block,) if mtp else ()),
    )
    name, source = f"nemotron3_{size.lower()}", "NVIDIA-NeMo/Nemotron docs; transformers nemotron_h"
    return Lab(name, "NVIDIA", f"Nemotron 3 {size}", "2025-12", model, published, training, "C", source, (*common, *facts))


def _experts(experts: int, k: int, hidden: int, shared: int, latent: int | None) -> MoE:
    router = Router(score="sigmoid", select=TopK(k=k), scale=2.5)
    balance = (BiasBalance(rate=1e-3), AuxLoss(weight=1e-4, over="global"))
    return MoE(experts=experts, expert=relu2(hidden), router=router, shared=relu2(shared), latent=latent, balance=balance)


def nemotron3_nano() -> Lab:
    """31.6B-A3.6B: 23 Mamba-2, 23 sparse and 6 attention layers, squared ReLU, no position at all."""
    training = Training(
        "25T",
        "3072 x 8192",
        "warm-up 8.4B; 1e-3 for 20T; to 1e-5 over 5T",
        "adamw",
        "BF16",
        optim=AdamW(lr=1e-3),
        schedule=WSD(warmup=3.36e-4, decay=0.2, floor=0.01),
    )
    layers = "MEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEMEM*EMEMEMEME"
    shape = unknown("training.schedule.shape", why="linear; not found for Nano")
    return _nemotron("Nano", 2688, layers, 32, 64, _experts(128, 6, 1856, 3712, None), False, Published(31.6, 3.6), training, *shape)


def nemotron3_super() -> Lab:
    """120B-A12B: latent experts, 22 of 512, trained in NVFP4."""
    training = Training(
        "25T",
        "3072 x 8192",
        "warm-up 200B; 4.5e-4 for 20T; to 4.5e-6 over 5T by minus-sqrt",
        "adamw",
        "NVFP4; the last 15 % of layers, latent, attention and MTP in BF16",
        optim=AdamW(lr=4.5e-4),
        schedule=WSD(warmup=0.008, decay=0.2, shape="1-sqrt", floor=0.01),
    )
    facts = (
        Fact("pattern", "?", "40 Mamba-2, 40 sparse, 8 attention layers by count; their order is filled in as in Nano"),
        Fact("mtp.weight", "C", "0.3, two modules with one set of weights"),
    )
    ffn = _experts(512, 22, 2688, 5376, 1024)
    return _nemotron("Super", 4096, "MEMEM*EMEME" * 8, 32, 128, ffn, True, Published(120.6, 12.7), training, *facts)


def nemotron3_ultra() -> Lab:
    """550B-A55B, the large one."""
    training = Training("20T (15 + 5)", "?", "?, WSD", "adamw", "NVFP4")
    facts = (
        *unknown("pattern", why="48 Mamba-2, 48 sparse, 12 attention layers of 108, which gives the total; counts and order are filled in"),
        *unknown("blocks.softmax.mixer.heads", "blocks.softmax.mixer.kv_heads", why="64 and 2"),
        *unknown("blocks.mamba.mixer.heads", why="256 of 64"),
        *unknown("blocks.moe.ffn.expert.hidden", why="5120, from the total"),
        *unknown("blocks.moe.ffn.shared.hidden", why="10,240, twice an expert"),
        *unknown("blocks.moe.ffn.balance", why="as Super"),
        *unknown("mtp.weight", why="as Super"),
        *unknown("training.rate"),
    )
    ffn = _experts(512, 22, 5120, 10_240, 2048)
    return _nemotron("Ultra", 8192, "MEMEM*EME" * 12, 64, 256, ffn, True, Published(550, 55), training, *facts)
