"""What a preset is: a lab's published model at its real size, how it was trained, and where each number comes from.

Marks: C = confirmed in released code, a configuration or a report; M = from memory of the paper; D = derived from other numbers; ? = a
guess, where something had to be filled in. Numbers without a note of their own carry the preset's mark. An arXiv number begins with its
year and month; `transformers` is version 5.23.0 throughout.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Literal, NamedTuple

from upslope.config import Config, dump
from upslope.model.config import (
    FFN,
    MLA,
    Attention,
    AuxLoss,
    BiasBalance,
    Compressed,
    Gated,
    Hashed,
    Indexer,
    Layer,
    Mixer,
    ModelConfig,
    MoE,
    Nothing,
    Position,
    PreNorm,
    QKNorm,
    Relu2,
    Reuse,
    Rope,
    Router,
    TopK,
    Yarn,
)
from upslope.optim.config import Optim
from upslope.optim.schedule import Schedule

Mark = Literal["C", "M", "D", "?"]


class Fact(NamedTuple):
    """Where one number (or a few) comes from. what: a path in the config ("blocks.*.ffn") or below "training"."""

    what: str
    mark: Mark
    source: str


class Training(NamedTuple):
    """How the lab trained: prose, "?" where it is not public.

    optimizer: its kind, also that of the scaled recipe. optim, schedule: as configs, where numbers are known and the types can say them.
    """

    tokens: str
    batch: str
    rate: str
    optimizer: Literal["adamw", "muon"]
    precision: str
    note: str = ""
    optim: Optim | None = None
    schedule: Schedule | None = None

    @property
    def trillions(self) -> float:
        """Tokens, in 10^12, that `tokens` states first; 0 where it states none."""
        found = re.match(r"(\d+(?:\.\d+)?)T", self.tokens)
        return float(found[1]) if found else 0.0

    def said(self) -> dict[str, str]:
        """What there is to say, in words, by name."""
        spoken = {"optim": self.optim, "schedule": self.schedule}
        words = {k: v for k, v in self._asdict().items() if k not in spoken and v}
        return words | {k: _spoken(v) for k, v in spoken.items() if v is not None}


def _spoken(config: Config) -> str:
    body = dump(config, identity=True)  # without what is as it always was
    kind = body.pop("kind")
    return f"{kind}: " + ", ".join(f"{k} {v:g}" if isinstance(v, float) else f"{k} {v}" for k, v in body.items() if v is not None)


class Published(NamedTuple):
    """Parameters as the lab states them, in billions; 0 = not stated."""

    total: float
    active: float = 0.0


class Lab(NamedTuple):
    """A preset. date: of the release. mark, source: of all numbers that `facts` does not name."""

    name: str
    lab: str
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


def unknown(*paths: str, why: str = "not public") -> tuple[Fact, ...]:
    """Guesses with one reason."""
    return tuple(Fact(path, "?", why) for path in paths)


def full(heads: int, kv_heads: int, head_dim: int, position: Position, **knobs: object) -> Attention:
    """Grouped-query attention without QK-norm unless it is asked for."""
    return Attention.model_validate(
        {"qk_norm": None, **knobs, "heads": heads, "kv_heads": kv_heads, "head_dim": head_dim, "position": position}
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


def pattern(names: Mapping[str, str], text: str) -> tuple[str, ...]:
    """Block names from a string of letters, as labs write their hybrids."""
    return tuple(names[c] for c in text)


def parts(model: ModelConfig) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(mixers, channel mixers) that the blocks are made of, in words."""
    mixers = dict.fromkeys(_mixer_words(b.mixer) for b in model.blocks.values() if not isinstance(b.mixer, Nothing))
    ffns = dict.fromkeys(_ffn_words(b.ffn) for b in model.blocks.values() if not isinstance(b.ffn, Nothing))
    return tuple(mixers), tuple(ffns)


def kinds(model: ModelConfig) -> str:
    """The kinds of part alone, without what most have: "mla, indexer, swiglu, moe, mtp"."""
    blocks = model.blocks.values()
    found = [k for b in blocks for k in (b.mixer.kind, getattr(b.mixer, "window", None) and "window", *_inner_kinds(b.mixer))]
    found += [b.ffn.kind for b in blocks]
    found += [k for b in blocks if isinstance(b.ffn, MoE) for k in (b.ffn.latent and "latent experts", b.ffn.router.select.kind)]
    found += [k for b in blocks for k in (b.norm.kind, b.residual.kind)] + [model.mtp and "mtp"]
    return ", ".join(dict.fromkeys(k for k in found if k and k not in ("nothing", "rope", "own", "topk", "pre", "add")))


def _inner_kinds(m: Mixer) -> list[str]:
    return [getattr(getattr(m, part, None), "kind", "") for part in ("position", "kv", "select", "history")]


def _mixer_words(m: Mixer) -> str:
    words = [m.kind, *([] if isinstance(m, Nothing) else [f"{m.heads} heads"])]
    if isinstance(m, Attention):
        words[1] = f"{m.heads}/{m.kv_heads} heads"
        extras = {"QK-norm": m.qk_norm, "sinks": m.sinks, f"soft-cap {m.softcap}": m.softcap, "bias": m.bias != "none", "gate": m.gate}
        words += [m.position.kind, *([f"window {m.window}"] if m.window else []), *(w for w, on in extras.items() if on)]
        words += ["reused kv"] if isinstance(m.kv, Reuse) else []
    if isinstance(m, MLA):
        words += [f"latent {m.kv_latent}", *([f"{m.select.kind}"] if m.select else [])]
    if isinstance(m, Compressed):
        words += [f"window {m.window}", *([m.history.kind] if m.history else [])]
    return " ".join(words)


def _ffn_words(f: FFN) -> str:
    if isinstance(f, Gated):
        return " ".join([f.kind, str(f.hidden), *([f.act] if f.act != "silu" else []), *([f"limit {f.limit:g}"] if f.limit else [])])
    if not isinstance(f, MoE):
        return f"{f.kind} {getattr(f, 'hidden', '')}".strip()
    words = [f"moe {f.router.select.k} of {f.experts} x {f.expert.hidden}", *([f"shared {f.shared.hidden}"] if f.shared else [])]
    words += [*([f"latent {f.latent}"] if f.latent else []), f.router.score, *(["hash"] if isinstance(f.router.select, Hashed) else [])]
    balance = ", ".join(b.kind if isinstance(b, BiasBalance) else f"aux over {b.over}" for b in f.balance)
    return " ".join(words) + (f" ({balance})" if balance else "")
