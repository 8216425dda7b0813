"""What an adapter is: rank, scale, targets, and in which format the frozen base is held. Torch-free."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from upslope.config import Config


class Bf16(Config):
    """A frozen matrix in bfloat16: 2 bytes a weight."""

    kind: Literal["bf16"] = "bf16"


class Int8(Config):
    """A frozen matrix in *emulated* int8: round(127 w / a), a = max |w| of its row (float32). Error ≤ a / 254.

    Source: LLM.int8(), arXiv 2208.07339 §2 (row-wise absmax; its outlier columns are not kept apart here).
    """

    kind: Literal["int8"] = "int8"


class Int4(Config):
    """A frozen matrix in *emulated* int4, two codes a byte: round(7 w / a), a = max |w| of `block` weights in a row. Error ≤ a / 14."""

    kind: Literal["int4"] = "int4"
    block: int = Field(default=64, ge=2)


class NF4(Config):
    """A frozen matrix in *emulated* NF4, two codes a byte: the nearest of 16 quantiles of a normal distribution, times a as in `Int4`.

    Source: QLoRA, arXiv 2305.14314 §3 (its double quantisation of the scales is left out: 4.5 bits a weight at blocks of 64).
    """

    kind: Literal["nf4"] = "nf4"
    block: int = Field(default=64, ge=2)


Held = Annotated[Bf16 | Int8 | Int4 | NF4, Field(discriminator="kind")]


class LowRank(Config):
    """W' = W + s B A, with A (rank, in) drawn and B (out, rank) zero; per expert where W is a stack (E, out, in).

    scaling: "rank": s = alpha / rank; "sqrt_rank" (rsLoRA): s = alpha / √rank. draw of A: "kaiming": uniform within ± 1/√in;
    "normal": of deviation 1 / rank. targets, skip: patterns of names, as in `blocks.*.mixer.q` (a matrix `….q.weight` has both names).
    tied: whether a table that is embedding and head at once may be a target. base: the format of the frozen matrices, None: as they are.
    held: patterns of what is held so, adapted or not. Routers and other matrices computed in float32 never are.
    """

    rank: int = Field(default=16, ge=1)
    alpha: float = Field(default=32.0, gt=0)
    scaling: Literal["rank", "sqrt_rank"] = "rank"
    draw: Literal["kaiming", "normal"] = "kaiming"
    targets: tuple[str, ...] = Field(default=("blocks.*",), min_length=1)
    skip: tuple[str, ...] = ("*.router", "*.indexer.*")
    tied: Literal["refuse", "adapt"] = "refuse"
    base: Held | None = None
    held: tuple[str, ...] = ("blocks.*",)


class LoRA(LowRank):
    """Low-rank adaptation. Sources: arXiv 2106.09685 §4.1; rsLoRA: arXiv 2312.03732."""

    kind: Literal["lora"] = "lora"


class DoRA(LowRank):
    """W' = m V / ‖V‖, V = W + s B A, ‖·‖ of each output's row (length in), m (out,) = ‖W‖ at first: magnitude and direction apart.

    norm: "constant": no gradient passes through ‖V‖ (§4.3: less memory, nearly the same result); "exact": it does.
    Source: arXiv 2402.09353 eq. 5; its columns are rows here, as weights are (out, in).
    """

    kind: Literal["dora"] = "dora"
    norm: Literal["constant", "exact"] = "constant"


Adapter = Annotated[LoRA | DoRA, Field(discriminator="kind")]
