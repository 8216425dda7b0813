"""Where a pipeline's stages begin, which rank has which, and which layers may not be parted. Torch-free."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from upslope.config import UsageError
from upslope.model.config import MLA, Attention, Indexer, Mixer, ModelConfig, Own, Reuse

Style = Literal["loop", "v"]
"""Stage s of pp ranks is on rank s mod pp ("loop"), or the second half comes back the way it went ("v": 0 1 … pp-1 pp-1 … 1 0)."""


def boundaries(model: ModelConfig, stages: int) -> list[int] | None:
    """Where stages begin in the list embedding, blocks, MTP modules, head; None where `stages` does not divide.

    Either the blocks alone are shared out evenly (embedding joins the first stage, MTP and head the last), or all entries are.
    """
    depth, entries = model.depth, model.depth + 2 + (model.mtp.depth if model.mtp else 0)
    if depth % stages == 0:
        return [0] + [1 + i * (depth // stages) for i in range(1, stages)]
    return [i * (entries // stages) for i in range(stages)] if entries % stages == 0 else None


def blocks_of(model: ModelConfig, stages: int) -> list[range]:
    """The blocks of each stage. Final norm, MTP and head always stand in the last stage, the embedding in the first.

    UsageError where `boundaries` finds none, or where a layer would reuse what a layer of another stage computed.
    """
    starts = boundaries(model, stages)
    if starts is None:
        raise UsageError(
            f"pipeline: {model.depth} layers do not divide into pp x virtual = {stages} stages, nor with embedding, head and MTP counted\n"
            "way out: a number of layers that does, or another pp or virtual"
        )
    depth = model.depth
    edges = [0, *(min(max(s - 1, 0), depth) for s in starts[1:]), depth]
    found = [range(a, b) for a, b in zip(edges, edges[1:])]
    _check_reuse(model, found)
    return found


def rank_of(stage: int, pp: int, style: Style = "loop") -> int:
    """The rank, within the pp ranks of a pipeline, that has a stage."""
    at = stage % pp
    return pp - 1 - at if style == "v" and stage // pp % 2 else at


def _shared(mixer: Mixer) -> tuple[str, bool] | None:
    """(what a mixer leaves for or takes from other layers, whether it takes)."""
    if isinstance(mixer, Attention):
        return "keys and values", not isinstance(mixer.kv, Own)
    if isinstance(mixer, MLA) and isinstance(mixer.select, Indexer | Reuse):
        return "chosen tokens", isinstance(mixer.select, Reuse)
    return None


def _check_reuse(model: ModelConfig, stages: Sequence[range]) -> None:
    layers = [*model.layers(), *([model.blocks[model.mtp.block]] if model.mtp else [])]
    source: dict[str, int] = {}
    stage_of = {i: s for s, blocks in enumerate(stages) for i in blocks} | {model.depth: len(stages) - 1}
    for i, layer in enumerate(layers):
        if (shared := _shared(layer.mixer)) is None:
            continue
        what, takes = shared
        if not takes:
            source[what] = i
        elif what in source and stage_of[source[what]] != stage_of[i]:
            here = f"blocks.{i}" if i < model.depth else "the MTP module"
            raise UsageError(
                f"pipeline: {here} reuses the {what} of blocks.{source[what]}, which is in stage {stage_of[source[what]]}, not in"
                f" stage {stage_of[i]}\n"
                f"way out: another pp or virtual (stages now begin at blocks {', '.join(str(r.start) for r in stages)})"
            )
