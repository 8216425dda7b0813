"""Attention configs, one knob of `Attention` each and all of them together, and models made of them."""

from __future__ import annotations

from upslope.config import FrozenDict
from upslope.model.config import (
    RMS,
    Attention,
    Gated,
    Layer,
    Linear,
    Llama3,
    ModelConfig,
    Nope,
    Nothing,
    PreNorm,
    QKNorm,
    Reuse,
    Rope,
    Yarn,
)

ROPE = Rope(base=50.0)
BASE = Attention(heads=4, kv_heads=2, head_dim=8, position=ROPE, qk_norm=None)
YARN = Yarn(factor=4.0, original=16, beta_fast=4.0)
KNOBS = {
    "plain": BASE,
    "mha": BASE.replace(kv_heads=4),
    "mqa": BASE.replace(kv_heads=1),
    "nope": BASE.replace(position=Nope()),
    "interleaved": BASE.replace(position=ROPE.replace(layout="interleaved")),
    "leading": BASE.replace(position=ROPE.replace(fraction=0.5)),
    "trailing": BASE.replace(position=ROPE.replace(fraction=0.5, part="trailing", layout="interleaved")),
    "linear": BASE.replace(position=ROPE.replace(scaling=Linear(factor=3.0))),
    "llama3": BASE.replace(position=ROPE.replace(scaling=Llama3(original=16, factor=4.0))),
    "yarn": BASE.replace(position=ROPE.replace(scaling=YARN)),
    "yarn_softmax": BASE.replace(position=ROPE.replace(scaling=YARN.replace(temperature="softmax", mscale=0.7))),
    "yarn_none": BASE.replace(position=ROPE.replace(scaling=YARN.replace(temperature="none", truncate=False))),
    "qk_norm": BASE.replace(qk_norm=QKNorm(eps=1e-2)),
    "norm_full": BASE.replace(qk_norm=QKNorm(eps=1e-2, over="full")),
    "norm_after": BASE.replace(qk_norm=QKNorm(eps=1e-2, place="after")),
    "norm_full_after": BASE.replace(qk_norm=QKNorm(eps=1e-2, over="full", place="after")),
    "norm_zero": BASE.replace(qk_norm=QKNorm(eps=1e-2, gain="zero")),
    "wide_values": BASE.replace(value_dim=12),
    "narrow_values": BASE.replace(value_dim=4),
    "window": BASE.replace(window=4),
    "window_one": BASE.replace(window=1),
    "scale": BASE.replace(scale=0.8),
    "softcap": BASE.replace(softcap=0.7),
    "sinks": BASE.replace(sinks=True),
    "bias": BASE.replace(bias="qkv"),
    "bias_all": BASE.replace(bias="all"),
    "gate": BASE.replace(gate=True),
    "window_sinks": BASE.replace(window=3, sinks=True, value_dim=6),
    "all": BASE.replace(
        position=ROPE.replace(layout="interleaved", fraction=0.5, part="trailing", scaling=YARN.replace(temperature="softmax")),
        qk_norm=QKNorm(eps=1e-2, over="full", place="after", gain="zero"),
        value_dim=6,
        window=3,
        scale=0.5,
        softcap=2.0,
        sinks=True,
        bias="all",
        gate=True,
    ),
}


def stack(*mixers: Attention, pattern: tuple[str, ...] | None = None) -> ModelConfig:
    """A model of these mixers, bottom up; only the first block has an FFN."""
    norm = PreNorm(eps=1e-3)
    ffn = Gated(hidden=20)
    blocks = {str(i): Layer(mixer=m, ffn=ffn if i == 0 else Nothing(), norm=norm) for i, m in enumerate(mixers)}
    order = pattern or tuple(blocks)
    return ModelConfig(d_model=24, blocks=FrozenDict(blocks), pattern=order, vocab=64, context=64, final_norm=RMS(eps=1e-3))  # type: ignore[arg-type]


REUSE = BASE.replace(kv=Reuse(), qk_norm=QKNorm(eps=1e-2), gate=True)
MODELS = {name: stack(mixer, BASE) for name, mixer in KNOBS.items()} | {
    "cla": stack(BASE.replace(qk_norm=QKNorm(eps=1e-2)), REUSE, pattern=("0", "1", "0", "1", "1")),
    "cla_window": stack(BASE.replace(window=5), REUSE.replace(window=3), REUSE.replace(window=5)),
    "cla_of_full": stack(BASE, REUSE.replace(window=3, sinks=True)),
    "local_global": stack(BASE.replace(window=4), BASE, pattern=("0", "0", "1", "0")),
}
