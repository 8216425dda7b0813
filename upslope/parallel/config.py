"""How ranks divide a model and a batch: the mesh as a config. Torch-free."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from upslope.config import Config

Size = Annotated[int, Field(ge=1)]


class Mesh(Config):
    """Ranks by axis; neighbours in tp are neighbours in a node, then cp, fsdp, dp, pp.

    dp: whole replicas, each of fsdp shards (HSDP). fsdp: shards of weights, gradients and states; every shard has its own data.
    tp: every matrix is split. cp: a sequence is split, heads are exchanged by all-to-all (Ulysses); weights are sharded over cp too.
    pp: the blocks are split into stages (1F1B), each in `virtual` pieces (interleaved). ep: experts are split, over ranks of fsdp x cp.
    zero: what is sharded: 1 = states, 2 = and gradients, 3 = and weights. sequence: between tp's products the tokens are split over tp.
    """

    dp: Size = 1
    fsdp: Size = 1
    tp: Size = 1
    cp: Size = 1
    pp: Size = 1
    ep: Size = 1
    virtual: Size = 1
    zero: Literal[1, 2, 3] = 3
    sequence: bool = True

    @property
    def ranks(self) -> int:
        """Their number."""
        return self.dp * self.fsdp * self.tp * self.cp * self.pp

    @property
    def shards(self) -> int:
        """Ranks over which weights, gradients and states are sharded."""
        return self.fsdp * self.cp

    @property
    def data(self) -> int:
        """Groups of ranks with sequences of their own."""
        return self.dp * self.fsdp

    def stride(self, axis: str) -> int:
        """Distance of neighbours along "tp", "cp", "fsdp", "dp" or "pp" in rank numbers."""
        order = ("tp", "cp", "fsdp", "dp", "pp")
        n = 1
        for name in order[: order.index(axis)]:
            n *= getattr(self, name)
        return n

    def __str__(self) -> str:
        sizes = [f"{n} {getattr(self, n)}" for n in ("dp", "fsdp", "tp", "cp", "pp", "ep") if getattr(self, n) > 1] or ["one rank"]
        return " x ".join(sizes) + (f", zero {self.zero}" if self.shards > 1 else "") + (f", virtual {self.virtual}" * (self.virtual > 1))


class Recompute(Config):
    """Blocks whose intermediate results are computed again in the backward pass instead of being kept.

    every: each n-th block, counted from the first; the others keep all. keep: what such a block keeps nevertheless: "nothing" but its
    input, what "attention" kernels gave, or all matrix "products". Source: Chen et al. 2016, arXiv 1604.06174.
    """

    every: Size = 1
    keep: Literal["nothing", "attention", "products"] = "nothing"
