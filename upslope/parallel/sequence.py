"""Sequence parallelism: between tensor parallelism's products each rank of "tp" holds a piece of the tokens instead of all of them.

So the residual stream and the norms are held once, not on every rank. A half of a block gathers the tokens on the way in and sums into
pieces on the way out: what was one all-reduce becomes an all-gather and a reduce-scatter, forward and backward. Halves that run whole on
every rank, and those whose region begins further in (experts, latent attention), gather whole and cut the result. Embedding, final norm,
MTP's own maps and head see all tokens. Source: Korthikanti et al. 2022, arXiv 2205.05198 §4.2.2.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from upslope.model.block import Block
from upslope.model.mtp import Predictor
from upslope.model.transformer import Transformer
from upslope.parallel.comm import gather, gather_rows, split
from upslope.parallel.groups import Axis, Groups
from upslope.parallel.tensor import Region, norm_inside


def apply_sequence(model: nn.Module, groups: Groups) -> bool:
    """Cuts the tokens between products over "tp", where the mesh says so → whether it was done; the last step of `apply_context`.

    It is not with hyper-connections, whose coefficients are read from the stream itself, nor in a pipeline. Results are the same.
    """
    axis, mesh = groups["tp"], groups.mesh
    blocks = [m for m in model.modules() if isinstance(m, Block)]
    hyper = any(half is not None and half.streams is not None for b in blocks for half in (b.mixer_half, b.ffn_half))
    if axis.size == 1 or not mesh.sequence or mesh.pp > 1 or hyper:
        return False
    for block in blocks:
        for module, half in ((block.mixer, block.mixer_half), (block.ffn, block.ffn_half)):
            if module is not None and half is not None:
                norm_inside(half.before, axis)
                norm_inside(half.after, axis)
                _half(module, axis)
    for module in model.modules():
        if isinstance(module, Transformer):
            module.blocks[0].register_forward_pre_hook(lambda m, args: (split(args[0], axis, 0), *args[1:]))
            module.final_norm.register_forward_pre_hook(lambda m, args: (gather_rows(args[0], axis),))
        elif isinstance(module, Predictor):
            module.block.register_forward_pre_hook(lambda m, args: (split(args[0], axis, 0), *args[1:]))
            module.block.register_forward_hook(lambda m, args, out: gather_rows(out, axis))
    return True


def _half(module: nn.Module, axis: Axis) -> None:
    """A mixer or FFN (x, flow, ...) between pieces."""
    region = getattr(module, "region", None)
    if isinstance(region, Region):
        region.pieces = True
        return

    def enter(m: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        x, flow, *rest = args
        return gather(x, axis, 0, len(flow.ids)), flow, *rest

    def leave(m: nn.Module, args: Any, out: Tensor) -> Tensor:
        return split(out, axis, 0)

    module.register_forward_pre_hook(enter, prepend=True)
    module.register_forward_hook(leave)
