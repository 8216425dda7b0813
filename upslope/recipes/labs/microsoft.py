"""Microsoft AI: MAI-Thinking-1."""

from __future__ import annotations

from upslope.config import FrozenDict
from upslope.model.config import AuxLoss, Layer, ModelConfig, MoE, Nope, Normal, Rope, Router, TopK
from upslope.recipes.labs.lab import Fact, Lab, Published, Training, full, per_head, pre, swiglu, unknown


def mai_thinking_1() -> Lab:
    """962B-A35B: dense and very sparse layers in turn, latent experts, five local layers to one global without position."""
    router = Router(score="softmax", select=TopK(k=8))
    sparse = MoE(experts=512, expert=swiglu(5120), router=router, latent=3072, balance=(AuxLoss(weight=1e-3, over="global"),))
    local = full(48, 8, 128, Rope(), window=512, qk_norm=per_head())
    wide = local.replace(position=Nope(), window=None)
    blocks: FrozenDict[str, Layer] = FrozenDict(
        local_dense=pre(local, swiglu(13_312)), local_moe=pre(local, sparse), global_moe=pre(wide, sparse)
    )
    period = ("local_dense", "local_moe", "local_dense", "local_moe", "local_dense", "global_moe")
    model = ModelConfig.model_validate(
        {"d_model": 6656, "blocks": blocks, "pattern": period * 13, "init": Normal(zero=("mixer",)), "vocab": 200_019, "context": 262_144}
    )
    facts = (
        Fact("d_model", "D", "6656 by arithmetic; a public note prints 6,652"),
        Fact("blocks.*.mixer.heads", "?", "48: 52 would make heads x head_dim = d_model, but is no multiple of the 8 key-value heads"),
        Fact("blocks.*.mixer.head_dim", "?", "128, as most; not public"),
        Fact("blocks.*.ffn.expert.hidden", "D", "5120 gives the total within 0.3 %; 10,240 for gate and up together is reported"),
        Fact("blocks.*.ffn.router", "?", "softmax without a scale; neither is public"),
        Fact("blocks.*.ffn.balance", "?", "a GShard loss over the global batch is reported; its weight in pre-training is not"),
        Fact("pattern", "?", "39 dense and 39 sparse layers in turn, 5:1 local to global; how the two line up is not public"),
        Fact("init.std", "?", "zero attention output is reported, the rest is not"),
        *unknown("blocks.local_*.mixer.position.base", "blocks.*.norm.eps"),
    )
    training = Training(
        "30T + 3.4T + 0.15T", "134M tokens", "?", "adamw", "FP8, sensitive paths in high precision", "dropless, global-batch balance"
    )
    source = "public notes of the MAI-Thinking-1 report"
    return Lab("mai_thinking_1", "Microsoft AI", "MAI-Thinking-1", "2026-06", model, Published(962, 35), training, "C", source, facts)
