"""Where the heads of a model's attention lie in its projections: which rows of which weights belong to which head.

Weights are (out, in): a head is a run of rows. Modules are known by the `kind` of their config, "gqa" or "mla".
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn


def attentions(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """(name, module) of each mixer with grouped-query or latent attention, in order."""
    for name, module in model.named_modules():
        if getattr(getattr(module, "config", None), "kind", None) in ("gqa", "mla") and hasattr(module, "layer"):
            yield name, module


def projections(module: Any) -> dict[str, tuple[nn.Linear, int]]:
    """The projections of an attention module that make heads, and how many: queries, keys, values, MLA's keys and values in one."""
    c = module.config
    if c.kind == "gqa":
        found = {"q": (module.q, c.heads), "k": (module.k, c.kv_heads), "v": (module.v, c.kv_heads)}
    else:
        found = {"q": (module.q, c.heads), "q_b": (module.q_b, c.heads), "kv_b": (module.kv_b, c.heads)}
    return {n: (linear, heads) for n, (linear, heads) in found.items() if linear is not None}


def heads_of(model: nn.Module) -> dict[str, int]:
    """Parameter name → number of heads that its rows are, for `build(..., heads=heads_of(model))`."""
    return {f"{name}.{leaf}.weight": heads for name, module in attentions(model) for leaf, (_, heads) in projections(module).items()}
