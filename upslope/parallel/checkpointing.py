"""Activation checkpointing: a block's intermediate results are computed again in the backward pass.

What a block hands to layers above, or to losses as side outputs, it hands out once: the second computation sees what the first one saw,
and what it hands out is dropped.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from upslope.model.aux import Aux
from upslope.model.block import Block
from upslope.model.cache import Memory
from upslope.model.flow import Flow
from upslope.parallel.config import Recompute

ATTENTION = ("_scaled_dot_product", "flex_attention", "_flash_attention", "_efficient_attention")
PRODUCTS = ("mm.default", "addmm.default", "bmm.default", "baddbmm.default", "linear.default")  # not into a buffer that is used again


def recompute(model: nn.Module, config: Recompute) -> None:
    """Makes blocks of a model recompute, in place; results and gradients stay what they were. Before the model is sharded."""
    blocks = [m for m in model.modules() if isinstance(m, Block)]
    for block in blocks[:: config.every]:
        block.forward = partial(_recomputed, block.forward, config)  # type: ignore[method-assign]


def _recomputed(forward: Callable[..., Tensor], config: Recompute, x: Tensor, flow: Flow, memory: Memory | None) -> Tensor:
    if not torch.is_grad_enabled():
        return forward(x, flow, memory)
    before, first = dict(flow.shared), [True]

    def run(x: Tensor) -> Tensor:
        if first:
            first.clear()
            return forward(x, flow, memory)
        aux = None if flow.aux is None else Aux(flow.aux.wants)
        return forward(x, replace(flow, aux=aux, shared=dict(before)), memory)

    kept: dict[str, Any] = {}
    if config.keep != "nothing":
        kept["context_fn"] = partial(create_selective_checkpoint_contexts, _policy(config.keep))
    out: Tensor = checkpoint(run, x, use_reentrant=False, preserve_rng_state=False, **kept)
    return out


def _policy(keep: str) -> Callable[..., CheckpointPolicy]:
    names = ATTENTION if keep == "attention" else PRODUCTS

    def policy(context: Any, op: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
        name = str(op).partition(".")[2]
        kept = name.startswith(names)
        return CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.PREFER_RECOMPUTE

    return policy
