"""What a model is: a torch-free description from which its parameters, cost and weights file follow.

A model is a pattern of named blocks; a block is a `Layer(mixer, ffn, norm, residual)`; each part is a sum type by `kind`, so
that a new mechanism is a new member and no existing one grows a flag.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from upslope.config import Config, FrozenDict

Width = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0)]


class Rope(Config):
    """Rotary position embedding, half-split layout: pair i = channels (i, i + D/2), angle at position m: m · base^(-2i/D).

    Source: Su et al. 2021, arXiv 2104.09864 (layout of GPT-NeoX and Qwen3).
    """

    kind: Literal["rope"] = "rope"
    base: Positive = 10_000.0


class Nope(Config):
    """No position in the attention logits: order comes from the causal mask alone. Source: arXiv 2305.19466."""

    kind: Literal["nope"] = "nope"


Position = Annotated[Rope | Nope, Field(discriminator="kind")]


class RMS(Config):
    """Root-mean-square norm with a gain: y = x / sqrt(mean(x²) + eps) · g. Source: arXiv 1910.07467."""

    eps: Positive = 1e-6


class Attention(Config):
    """Causal softmax attention with grouped queries: heads / kv_heads query heads share one key-value head.

    qk_norm: RMS norm of each head's query and key before rotation (gain shared by the heads), or None.
    Source: GQA arXiv 2305.13245; QK-norm as in Qwen3, arXiv 2505.09388.
    """

    kind: Literal["gqa"] = "gqa"
    heads: Width
    kv_heads: Width
    head_dim: Width
    position: Position = Rope()
    qk_norm: RMS | None = RMS()

    @model_validator(mode="after")
    def _shapes(self) -> Self:
        if self.heads % self.kv_heads:
            raise ValueError(f"heads = {self.heads} must be a multiple of kv_heads = {self.kv_heads}")
        if self.head_dim % 2 and isinstance(self.position, Rope):
            raise ValueError(f"head_dim = {self.head_dim} must be even: rope rotates pairs of channels")
        return self


Mixer = Attention


class Gated(Config):
    """SwiGLU: y = (silu(x W_gate) ⊙ x W_up) W_down, W_gate and W_up (d, hidden). Source: arXiv 2002.05202."""

    kind: Literal["swiglu"] = "swiglu"
    hidden: Width


FFN = Gated


class PreNorm(Config):
    """Norms before the mixer and before the FFN: x + f(norm(x)). Source: arXiv 2002.04745."""

    kind: Literal["pre"] = "pre"
    eps: Positive = 1e-6


class Add(Config):
    """The plain residual stream: x + branch."""

    kind: Literal["add"] = "add"


class Layer(Config):
    """One block: token mixing, then channel mixing, each normed as `norm` says and joined as `residual` says."""

    mixer: Mixer
    ffn: FFN
    norm: PreNorm = PreNorm()
    residual: Add = Add()


class Untied(Config):
    """An output matrix of its own, (vocab, d)."""

    kind: Literal["untied"] = "untied"


class Tied(Config):
    """The embedding matrix is also the output matrix."""

    kind: Literal["tied"] = "tied"


Head = Annotated[Untied | Tied, Field(discriminator="kind")]


class ZeroOut(Config):
    """Attention output, FFN down projection and untied head start at zero, so the model starts as a uniform guess.

    The rest: normal with std gain / sqrt(fan_in); embeddings normal with std `embed_std`; norm gains 1.
    Source: measured for tiny models (arXiv 2203.03466 gives the zero head and output init).
    """

    kind: Literal["zero_out"] = "zero_out"
    embed_std: Positive = 0.5
    gain: Positive = 1.0


class Normal(Config):
    """Every matrix normal with one std; norm gains 1. Source: OLMo 2, arXiv 2501.00656 §3.2 (0.02)."""

    kind: Literal["normal"] = "normal"
    std: Positive = 0.02


Init = Annotated[ZeroOut | Normal, Field(discriminator="kind")]


def _run_length(value: Any) -> Any:
    """Names and (name, repeat) pairs → merged pairs: one model has one spelling, so one identity."""
    if not isinstance(value, tuple | list):
        return value
    runs: list[list[Any]] = []
    for item in value:
        name, repeat = (item, 1) if isinstance(item, str) else item
        if runs and runs[-1][0] == name:
            runs[-1][1] += repeat
        else:
            runs.append([name, repeat])
    return tuple((name, repeat) for name, repeat in runs)


class ModelConfig(Config):
    """A decoder-only language model.

    d_model: width of the residual stream. blocks: the kinds of block by name. pattern: which block stands where, as names or
    (name, repeat) pairs, bottom up. final_norm: the norm before the head. vocab: rows of the embedding; 0 = to be filled from
    the tokenizer (`replace(vocab=...)`). context: the longest sequence that the model is meant for, tokens.
    """

    d_model: Width
    blocks: FrozenDict[str, Layer]
    pattern: Annotated[tuple[tuple[str, Width], ...], BeforeValidator(_run_length)]
    head: Head = Untied()
    final_norm: RMS = RMS()
    init: Init = ZeroOut()
    vocab: Annotated[int, Field(ge=0)] = 0
    context: Width = 2048

    @model_validator(mode="after")
    def _pattern(self) -> Self:
        if not self.pattern:
            raise ValueError("pattern is empty: name at least one block")
        used = {name for name, _ in self.pattern}
        if missing := sorted(used - set(self.blocks)):
            raise ValueError(f"pattern names {missing[0]!r}, which is not in blocks ({', '.join(self.blocks)})")
        if unused := sorted(set(self.blocks) - used):
            raise ValueError(f"block {unused[0]!r} is not used by the pattern")
        return self

    def layers(self) -> Iterator[Layer]:
        """The blocks in order, bottom up."""
        for name, repeat in self.pattern:
            for _ in range(repeat):
                yield self.blocks[name]

    @property
    def depth(self) -> int:
        """Number of blocks."""
        return sum(repeat for _, repeat in self.pattern)

    def params(self, embedding: bool = True) -> int:
        """Number of parameters, from the config alone; embedding=False leaves the input embedding out."""
        from upslope.model.cost import params

        return params(self, embedding)

    def flops(self, length: int) -> float:
        """Forward floating-point operations per token at sequence length `length` (training: three times that)."""
        from upslope.model.cost import flops

        return flops(self, length)


def dense(
    d_model: int,
    depth: int,
    heads: int,
    kv_heads: int,
    head_dim: int,
    hidden: int,
    *,
    context: int,
    base: float = 10_000.0,
    head: Untied | Tied | None = None,
    init: ZeroOut | Normal | None = None,
    vocab: int = 0,
    eps: float = 1e-6,
    qk_norm: bool = True,
) -> ModelConfig:
    """A Qwen3-shaped dense model (Llama-shaped without QK-norm): one block repeated `depth` times."""
    norm = RMS(eps=eps) if qk_norm else None
    mixer = Attention(heads=heads, kv_heads=kv_heads, head_dim=head_dim, position=Rope(base=base), qk_norm=norm)
    block = Layer(mixer=mixer, ffn=Gated(hidden=hidden), norm=PreNorm(eps=eps))
    return ModelConfig(
        d_model=d_model,
        blocks=FrozenDict(dense=block),
        pattern=(("dense", depth),),
        head=head or Untied(),
        final_norm=RMS(eps=eps),
        init=init or ZeroOut(),
        vocab=vocab,
        context=context,
    )


def tiny(vocab: int = 0, context: int = 512) -> ModelConfig:
    """The model of the tiny recipe: 0.64M parameters at a vocabulary of 1,024 (d 96, 4 layers, 3 heads of 32, SwiGLU 256)."""
    return dense(96, 4, 3, 3, 32, 256, context=context, vocab=vocab)
