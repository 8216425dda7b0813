"""Families of published models that a config maps onto, both ways; see `dsl` for the language they are written in."""

from __future__ import annotations

from typing import Any

from upslope.model.config import ModelConfig
from upslope.model.families import dense, linear, mla, moe, v4
from upslope.model.families.dsl import Binding, Family, bindings

FAMILIES: dict[str, Family] = {f.kind: f for module in (dense, moe, mla, v4, linear) for f in module.FAMILIES}


def family_of(config: ModelConfig) -> tuple[Family, dict[str, Any]] | str:
    """The family that expresses this config, with its config.json; or, a line per family, why none does."""
    reasons = []
    for family in FAMILIES.values():
        out = family.write(config)
        if not isinstance(out, str):
            return family, out
        reasons.append(f"{family.architecture}: {out}")
    return "\n".join(reasons)


__all__ = ["FAMILIES", "Binding", "Family", "bindings", "family_of"]
