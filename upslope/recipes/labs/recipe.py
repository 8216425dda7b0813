"""A lab's preset as a recipe: the tiny recipe's graph, with the lab's model shrunk to a size and the lab's kind of optimizer."""

from __future__ import annotations

import re

from upslope.config import FrozenDict, UsageError
from upslope.machine.stage import Recipe
from upslope.model.cost import flops, params, published, weight_bytes
from upslope.optim.config import AdamW
from upslope.recipes.labs import get
from upslope.recipes.labs.lab import Lab
from upslope.recipes.scale import parse_size, scale
from upslope.recipes.tiny import tiny
from upslope.stages.pretrain import Pretrain
from upslope.train.init import Scratch

ADAMW_RATE = 3e-3  # of matrices at these sizes, where Muon takes 6e-3
PEAK, SHARE = 989e12, 0.4  # H100 dense bf16 FLOP/s (data sheet), and the share of it that large runs reach (torchtitan, Megatron: 38-48 %)
GPU_BYTES = 80e9


def lab_recipe(name: str, size: str, seed: int = 0) -> Recipe:
    """The preset `name` at `size`: data, tokenizer, mixture and every later stage as in `tiny`; model and optimizer as the lab's.

    Rates are those that suit the size, not the lab's: see `tiny`. UsageError for an unknown name or size.
    """
    lab, base = get(name), tiny(seed)
    start = base.stages["pretrain"]
    assert isinstance(start, Pretrain) and isinstance(start.init, Scratch)
    model = scale(lab.model, parse_size(size), context=start.init.model.context)
    changed: dict[str, object] = {"init": Scratch(model=model)}
    stages = dict(base.stages)
    if lab.training.optimizer == "adamw":
        changed["optim"] = AdamW(lr=ADAMW_RATE)
        middle = stages["midtrain"]
        assert isinstance(middle, Pretrain)
        stages["midtrain"] = middle.replace(optim=AdamW(lr=ADAMW_RATE * middle.optim.lr / start.optim.lr))
    stages["pretrain"] = start.replace(**changed)
    return Recipe(name=f"{name}_{size}".replace(".", "_"), seed=seed, stages=FrozenDict(stages))


def tokens(lab: Lab) -> float:
    """Pre-training tokens that the lab states first; 0 where it states none."""
    match = re.match(r"(\d+(?:\.\d+)?)T", lab.training.tokens)
    return float(match[1]) * 1e12 if match else 0.0


def price(lab: Lab, length: int = 4096) -> str:
    """What the real size would cost, in words."""
    total, active = published(lab.model)
    state = 16 * params(lab.model) / GPU_BYTES
    lines = [
        f"{lab.title}: {_count(total)} parameters, {_count(active)} of them active, {weight_bytes(lab.model, 'bf16') / 1e9:,.0f} GB in bf16"
    ]
    if seen := tokens(lab):
        work = 3 * flops(lab.model, length) * seen
        hours = work / (PEAK * SHARE) / 3600
        paid = f"{_count(hours)} H100 hours at {SHARE:.0%} of bf16 peak"
        lines.append(f"pre-training on {lab.training.tokens.split(' ')[0]} tokens: {work:.1e} FLOPs, {paid}")
    lines.append(f"weights, gradients and fp32 AdamW state alone fill {max(1, round(state)):,} GPUs of 80 GB")
    return "\n".join(lines)


def _count(x: float) -> str:
    for unit, word in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if x >= unit:
            return f"{x / unit:.3g}{word}"
    return f"{x:.3g}"


def refuse(name: str) -> UsageError:
    """Why a preset does not start without a size."""
    lab = get(name)
    return UsageError(
        f"{price(lab)}\na preset never starts at real size by itself\n"
        f"way out: --size tiny (or 1M, 10M, ...): the same knobs, smaller dimensions; `upslope presets {name}` shows them"
    )
