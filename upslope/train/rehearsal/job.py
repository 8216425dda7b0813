"""What a step does, as far as its memory, time and price depend on it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from upslope.config import Config
from upslope.optim.config import AdamW, Optim
from upslope.train.rehearsal.machines import Compute

Count = Annotated[int, Field(ge=1)]
Recompute = Literal["none", "selective", "alternate", "full"]
Stored = Literal["fp32", "bf16", "int8"]
WIDTH: dict[str, float] = {"fp32": 4, "bf16": 2, "fp8": 2, "int8": 1 + 4 / 256}
"""Bytes per element: of tensors as they are kept. Under fp8 what lies between the products is bf16; int8 has a float32 scale per 256."""


class Job(Config):
    """A training run.

    optim: decides the states. batch: tokens of an optimizer step, all ranks. length: of a sequence, tokens. micro: sequences of one
    micro-step of a data rank. precision: of matrix products. weights, gradients, states: how master weights, gradients and optimizer
    moments are kept (bf16 weights have a float32 master in the states unless `optim.narrow_weights` says otherwise). recompute:
    "none" keeps what backward reads; "selective" keeps the results of matrix products and attention and recomputes what lies between;
    "alternate" recomputes every second product too, as torchtitan does (those of attention and gated FFNs, else as "selective"); "full"
    keeps block inputs and repeats the forward pass. attention: "fused" keeps no scores; "eager" keeps them. chunk: tokens whose logits
    exist at a time, turned into gradients at once (None: all of a micro-step, through an unfused float32 cross-entropy). overlap:
    transfers that run behind computation: "none"; "data" (weights and gradients of FSDP); "all" (expert, context and pipeline transfers
    too; tensor-parallel ones never). imbalance: tokens of the fullest rank's experts / mean. tokens: of the whole run (None: the run's
    hours and price are left out).
    """

    optim: Optim = AdamW()
    batch: Count
    length: Count = 4096
    micro: Count = 1
    precision: Compute = "bf16"
    weights: Literal["fp32", "bf16"] = "fp32"
    gradients: Literal["fp32", "bf16"] = "fp32"
    states: Stored = "fp32"
    recompute: Recompute = "selective"
    attention: Literal["fused", "eager"] = "fused"
    chunk: Count | None = 2048
    overlap: Literal["none", "data", "all"] = "data"
    imbalance: Annotated[float, Field(ge=1)] = 1.0
    tokens: Annotated[float, Field(gt=0)] | None = None
