"""What a preset is: a lab's published model at its real size, how it was trained, and where each number comes from.

Marks: C = confirmed in released code, a configuration or a report; M = from memory of the paper; D = derived from other numbers; ? = a
guess, where something had to be filled in. Numbers without a note of their own carry the preset's mark.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple

from upslope.model.config import (
    MLA,
    Attention,
    AuxLoss,
    BiasBalance,
    Gated,
    Indexer,
    Layer,
    ModelConfig,
    MoE,
    PreNorm,
    QKNorm,
    Relu2,
    Rope,
    Router,
    TopK,
    Yarn,
)

Mark = Literal["C", "M", "D", "?"]


class Fact(NamedTuple):
    """Where one number (or a few) comes from. what: a path in the config, or a word for a training fact."""

    what: str
    mark: Mark
    source: str


class Training(NamedTuple):
    """How the lab trained: prose, "?" where it is not public. optimizer: also that of the scaled recipe."""

    tokens: str
    batch: str
    rate: str
    optimizer: Literal["adamw", "muon"]
    precision: str
    note: str = ""


class Published(NamedTuple):
    """Parameters as the lab states them, in billions; 0 = not stated."""

    total: float
    active: float = 0.0


class Lab(NamedTuple):
    """A preset. date: of the release. mark, source: of all numbers that `facts` does not name."""

    name: str
    title: str
    date: str
    model: ModelConfig
    published: Published
    training: Training
    mark: Mark
    source: str
    facts: tuple[Fact, ...] = ()

    @property
    def guesses(self) -> tuple[Fact, ...]:
        """What is not known and was filled in."""
        return tuple(f for f in self.facts if f.mark == "?")


def full(heads: int, kv_heads: int, head_dim: int, rope: Rope, **knobs: object) -> Attention:
    """Grouped-query attention without QK-norm unless it is asked for."""
    return Attention.model_validate(
        {"qk_norm": None, **knobs, "heads": heads, "kv_heads": kv_heads, "head_dim": head_dim, "position": rope}
    )


def swiglu(hidden: int) -> Gated:
    """A SwiGLU of this width."""
    return Gated(hidden=hidden)


def v3_experts(
    experts: int, k: int, hidden: int, scale: float, *, groups: int = 1, keep: int = 1, sequence: float = 1e-4, rate: float = 1e-3
) -> MoE:
    """DeepSeek-V3's mixture: sigmoid scores, a selection bias, one shared expert, and a small sequence-wise loss."""
    router = Router(score="sigmoid", select=TopK(k=k, groups=groups, keep=keep), scale=scale)
    balance = (BiasBalance(rate=rate), *((AuxLoss(weight=sequence, over="sequence"),) if sequence else ()))
    return MoE(experts=experts, expert=swiglu(hidden), router=router, shared=swiglu(hidden), balance=balance)


def latent(heads: int, rope: Rope, *, q: int = 1536, nope: int = 128, value: int = 128, select: Indexer | None = None) -> MLA:
    """DeepSeek's latent attention: 512 cached channels and 64 rotary ones."""
    return MLA(heads=heads, q_latent=q, kv_latent=512, nope_dim=nope, rope_dim=64, value_dim=value, position=rope, select=select)


def stretched(base: float, factor: float, original: int = 4096, **ends: float) -> Rope:
    """Interleaved rope stretched by YaRN, its temperature on the softmax, as in DeepSeek-V3."""
    scaling = Yarn.model_validate({"factor": factor, "original": original, "temperature": "softmax", **ends})
    return Rope(base=base, layout="interleaved", scaling=scaling)


def pre(mixer: object, ffn: object, eps: float = 1e-6) -> Layer:
    """A block with norms before both halves."""
    return Layer.model_validate({"mixer": mixer, "ffn": ffn, "norm": PreNorm(eps=eps)})


def per_head(eps: float = 1e-6) -> QKNorm:
    """RMS norm of each head's queries and keys."""
    return QKNorm(eps=eps)


def relu2(hidden: int) -> Relu2:
    """A squared-ReLU FFN of this width."""
    return Relu2(hidden=hidden)


def pattern(names: Mapping[str, str] | None, text: str) -> tuple[str, ...]:
    """Block names from a string of letters, as labs write their hybrids."""
    return tuple((names or {}).get(c, c) for c in text)
