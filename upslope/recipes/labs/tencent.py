"""Tencent: Hunyuan-Large."""

from __future__ import annotations

from upslope.model.config import RMS, AuxLoss, ModelConfig, MoE, Normal, QKNorm, Reuse, Rope, Router, Tied, TopK
from upslope.recipes.labs.lab import Fact, Lab, Published, Training, full, pre, swiglu, unknown


def hunyuan_large() -> Lab:
    """389B-A52B: keys and values shared by pairs of layers, one of sixteen experts beside a shared one."""
    router = Router(score="softmax", select=TopK(k=1), renorm=False)
    balance = (AuxLoss(weight=1e-2, over="micro", group=1),)
    ffn = MoE(experts=16, expert=swiglu(18_304), router=router, shared=swiglu(18_304), balance=balance)
    own = full(80, 8, 80, Rope(base=10_000), qk_norm=QKNorm(eps=1e-5, place="after"))
    model = ModelConfig.model_validate(
        {
            "d_model": 6400,
            "blocks": {"own": pre(own, ffn, 1e-5), "reuse": pre(own.replace(kv=Reuse()), ffn, 1e-5)},
            "pattern": ("own", "reuse") * 32,
            "head": Tied(),
            "final_norm": RMS(eps=1e-5),
            "init": Normal(),
            "vocab": 129_024,
            "context": 262_144,
        }
    )
    facts = (
        Fact("blocks.*.mixer.head_dim", "D", "80, from the 52B active parameters"),
        Fact("blocks.*.mixer.kv", "C", "Tencent's repository, use_cla and cla_share_factor = 2"),
        Fact("blocks.*.mixer.qk_norm", "C", "transformers hunyuan_v1_moe"),
        Fact("blocks.*.mixer.position", "M", "dynamic NTK for 256K is not built here"),
        Fact("blocks.*.ffn.router.select", "C", "one of sixteen; overflow goes to a random expert with room, which is not built here"),
        *unknown("blocks.*.ffn.router.renorm", why="with one expert a renormalised weight is 1"),
        *unknown("blocks.*.ffn.balance", why="a load-balancing loss is reported, its weight and scope are not"),
        *unknown("init", "vocab", why="not found to the unit; 129,024 gives the total"),
    )
    training = Training("7T (1.5T synthetic)", "?", "three phases; experts at 0.31 of the rate", "adamw", "BF16")
    source = "arXiv 2411.02265"
    return Lab("hunyuan_large", "Tencent", "Hunyuan-Large", "2024-11", model, Published(389, 52), training, "M", source, facts)
