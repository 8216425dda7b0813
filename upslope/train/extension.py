"""Context extension: from a checkpoint's description to one meant for longer sequences. Only rope configs and `context` change. Torch-free.

An extension adds no parameter, so weights (and optimizer state) carry over to the bit and `init` needs no other mechanism. Lengths that
grow in steps are one extension a stage; factors are of the unscaled rotation, so the second step of a chain needs no arithmetic.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Literal, TypeVar

from pydantic import Field

from upslope.config import Config, FrozenDict, UsageError
from upslope.model.config import MLA, Attention, Compressed, Indexer, Layer, Linear, Mixer, ModelConfig, Rope, Yarn

Width = Annotated[int, Field(ge=1)]
Factor = Annotated[float, Field(gt=0)]
S = TypeVar("S", Linear, Yarn)


class Keep(Config):
    """Rotation as it is: for models whose global layers have no position (NoPE), and as the control of the others."""

    kind: Literal["keep"] = "keep"


class Base(Config):
    """A larger base (ABF): slower rotation of every pair, most of the slowest.

    base: the new one. Values: Llama 3 500,000; Qwen3 and GLM-4.5 1,000,000 after 10,000; MiMo 640,000. Source: arXiv 2309.16039.
    """

    kind: Literal["base"] = "base"
    base: Factor


class NTK(Config):
    """The base that stretches the slowest pair by `factor` and leaves the fastest: base · factor^(D / (D - 2)), D rotating channels.

    factor: None = new context / old context. Source: bloc97 2023 (NTK-aware scaling), in arXiv 2309.00071 §3.1.
    """

    kind: Literal["ntk"] = "ntk"
    factor: Factor | None = None


class Interpolate(Config):
    """Position interpolation: positions divided by `factor`.

    factor: of the unscaled rotation; None = what it was before (1) · new context / old context. Source: arXiv 2306.15595.
    """

    kind: Literal["linear"] = "linear"
    factor: Factor | None = None


class YaRN(Config):
    """NTK-by-parts interpolation with an attention temperature; see `model.config.Yarn`.

    factor: of the unscaled rotation; None = new context / original. original: the context that was trained without scaling, tokens;
    None = that of the scaling that is there, else the checkpoint's context. The others are those of `Yarn`.
    Values: DeepSeek-V3 factor 40 of 4096; Kimi K2 32 of 4096 with both ends 1; V4 16 of 65,536 without temperature.
    Source: arXiv 2309.00071.
    """

    kind: Literal["yarn"] = "yarn"
    factor: Factor | None = None
    original: Width | None = None
    beta_fast: Factor = 32.0
    beta_slow: Factor = 1.0
    temperature: Literal["rotation", "softmax", "none"] = "rotation"
    mscale: Factor = 1.0
    truncate: bool = True


Method = Annotated[Keep | Base | NTK | Interpolate | YaRN, Field(discriminator="kind")]


class Extension(Config):
    """Go on with longer sequences.

    context: longest sequence from here on, tokens. method: what happens to rotation. layers: whose: "global" = layers that see everything
    (windowed ones keep their base, as in Gemma 3 and OLMo 3; DeepSeek-V4's pure-window layers too), or "all". Layers without rotation
    (NoPE, linear attention) are never touched. An indexer rotates with its layer.
    """

    context: Width
    method: Method = Keep()
    layers: Literal["global", "all"] = "global"

    def extended(self, model: ModelConfig) -> ModelConfig:
        """The description to go on as. UsageError for a shorter context, no layer to change, or another scaling."""
        if self.context < model.context:
            raise UsageError(
                f"extend.context = {self.context}: the checkpoint is meant for {model.context} tokens already\nway out: a longer context"
            )
        turning = {name for name, layer in model.blocks.items() if ropes_of(layer.mixer)}
        chosen = {name for name in turning if self.layers == "all" or not windowed(model.blocks[name].mixer)}
        if not isinstance(self.method, Keep) and not chosen:
            why = f"the rotating ones ({', '.join(sorted(turning))}) have windows" if turning else "none rotates"
            raise UsageError(
                f"extend.method = {self.method.kind!r} has no layer to change: {why}\nway out: method 'keep', or layers = 'all'"
            )
        blocks = {name: self._block(layer, model.context) if name in chosen else layer for name, layer in model.blocks.items()}
        return model.replace(blocks=FrozenDict(blocks), context=self.context)

    def _block(self, layer: Layer, before: int) -> Layer:
        return layer.replace(mixer=with_ropes(layer.mixer, lambda rope, dim: self._rope(rope, dim, before)))

    def _rope(self, rope: Rope, head_dim: int, before: int) -> Rope:
        """The rotation of heads of this width; before: the context so far."""
        m, stretch = self.method, self.context / before
        if isinstance(m, Base):
            return rope.replace(base=m.base)
        if isinstance(m, NTK):
            width = rope.width(head_dim)
            if width < 4:
                raise UsageError(f"extend.method = 'ntk': a head rotates {width} channels, the rule needs 4\nway out: another method")
            return rope.replace(base=rope.base * (m.factor or stretch) ** (width / (width - 2)))
        if isinstance(m, Interpolate):
            old = _scaling(rope, Linear)
            return rope.replace(scaling=Linear(factor=m.factor or (old.factor if old else 1.0) * stretch))
        if isinstance(m, YaRN):
            there = _scaling(rope, Yarn)
            original = m.original or (there.original if there else before)
            ends = {name: getattr(m, name) for name in ("beta_fast", "beta_slow", "temperature", "mscale", "truncate")}
            return rope.replace(scaling=Yarn(factor=m.factor or self.context / original, original=original, **ends))
        return rope


def windowed(m: Mixer) -> bool:
    """Whether a layer sees a window of tokens and nothing before it."""
    if isinstance(m, Compressed):
        return m.history is None
    return isinstance(m, Attention) and m.window is not None


def with_ropes(m: Mixer, change: Callable[[Rope, int], Rope]) -> Mixer:
    """The mixer with each of its rotations changed; change: (rope, width of the heads that it turns) → rope."""
    if isinstance(m, Attention):
        return m.replace(position=change(m.position, m.head_dim)) if isinstance(m.position, Rope) else m
    if isinstance(m, MLA):
        select = m.select
        if isinstance(select, Indexer):
            select = select.replace(rope=change(select.rope, select.dim))
        return m.replace(position=change(m.position, m.rope_dim), select=select)
    return m.replace(position=change(m.position, m.head_dim)) if isinstance(m, Compressed) else m


def ropes_of(m: Mixer) -> list[Rope]:
    """The rotations of a mixer."""
    found: list[Rope] = []

    def seen(rope: Rope, dim: int) -> Rope:
        found.append(rope)
        return rope

    with_ropes(m, seen)
    return found


def _scaling(rope: Rope, kind: type[S]) -> S | None:
    """The scaling that is there, if it is of this kind. UsageError where it is of another."""
    if rope.scaling is None or isinstance(rope.scaling, kind):
        return rope.scaling
    raise UsageError(
        f"extend.method: the checkpoint's rotation is scaled by {rope.scaling.kind!r} already\n"
        "way out: the same kind, kind 'base', or a checkpoint without scaling"
    )
