"""Google: Gemma 2 and 3."""

from __future__ import annotations

from upslope.config import FrozenDict
from upslope.model.config import RMS, Gated, Layer, Linear, ModelConfig, Normal, QKNorm, Rope, SandwichNorm, Tied
from upslope.recipes.labs.lab import Fact, Lab, Published, Training, full, unknown


def gemma2_2b() -> Lab:
    """2B dense: soft-caps on attention and output logits, local and global in turn."""
    local = full(8, 4, 256, Rope(), window=4096, softcap=50.0, scale=256**-0.5)
    ffn, norm = Gated(hidden=9216, act="gelu"), SandwichNorm(gain="zero")
    mixers = {"local": local, "global": local.replace(window=None)}
    model = ModelConfig(
        d_model=2304,
        blocks=FrozenDict({n: Layer(mixer=m, ffn=ffn, norm=norm) for n, m in mixers.items()}),
        pattern=(("local", 1), ("global", 1)) * 13,
        head=Tied(),
        final_norm=RMS(gain="zero"),
        init=Normal(),
        vocab=256_000,
        context=8192,
        embed_scale="sqrt_d",
        logit_softcap=30.0,
    )
    facts = (Fact("init", "?", "the released class's default"), Fact("training", "M", "arXiv 2408.00118"), *unknown("training.optimizer"))
    training = Training("2T (distilled)", "?", "?", "adamw", "?")
    source = "transformers gemma2, whose defaults are this size"
    return Lab("gemma2_2b", "Google", "Gemma 2 2B", "2024-07", model, Published(2.61), training, "C", source, facts)


def gemma3_27b() -> Lab:
    """27B dense: five local layers to one global, QK-norm, norms on both sides, distilled."""
    qk, scale = QKNorm(gain="zero"), (5376 / 32) ** -0.5
    ffn, norm = Gated(hidden=21_504, act="gelu"), SandwichNorm(gain="zero")
    local = full(32, 16, 128, Rope(base=10_000), window=1024, qk_norm=qk, scale=scale)
    wide = full(32, 16, 128, Rope(base=1e6, scaling=Linear(factor=8)), qk_norm=qk, scale=scale)
    model = ModelConfig(
        d_model=5376,
        blocks=FrozenDict({n: Layer(mixer=m, ffn=ffn, norm=norm) for n, m in {"local": local, "global": wide}.items()}),
        pattern=(("local", 5), ("global", 1)) * 10 + (("local", 2),),
        head=Tied(),
        final_norm=RMS(gain="zero"),
        init=Normal(),
        vocab=262_144,
        context=131_072,
        embed_scale="sqrt_d",
    )
    facts = (
        Fact("pattern", "C", "layer i is global iff (i + 1) % 6 == 0; transformers gemma3"),
        Fact("vocab", "M", "the released matrix has 262,208 rows"),
        Fact("init", "?", "the released class's default"),
        *unknown("training.optimizer"),
    )
    training = Training("14T", "?", "? (distillation, 256 sampled teacher logits a token)", "adamw", "BF16")
    source = "arXiv 2503.19786; transformers gemma3"
    return Lab("gemma3_27b", "Google", "Gemma 3 27B", "2025-03", model, Published(27), training, "M", source, facts)
