"""Adapters on disk as PEFT writes them: `adapter_config.json` and `adapter_model.safetensors`.

Tensors are `base_model.model.NAME.lora_A.weight` (r, in), `….lora_B.weight` (out, r) and `….lora_magnitude_vector` (out,), NAME a module
of the model's published family (of our own names where none expresses it). Stacks are one pair per expert, as on the hub.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from upslope.config import UsageError
from upslope.machine.files import atomic, read_json, write_json
from upslope.model.adapter_config import DoRA, LoRA
from upslope.model.adapters import Adapted, adaptable, adapted, attach, slots
from upslope.model.families import bindings
from upslope.model.transformer import Transformer
from upslope.model.weights import family_for, read_tensors

CONFIG, WEIGHTS, PREFIX = "adapter_config.json", "adapter_model.safetensors", "base_model.model."
LEAVES = {"lora_a": "lora_A.weight", "lora_b": "lora_B.weight", "magnitude": "lora_magnitude_vector"}


def names(model: Transformer) -> dict[str, tuple[str, ...]]:
    """Our matrices → the modules of the published family that hold them: one, or one per expert. What is fused or turned there is left out.

    model: without adapters.
    """
    family, ours, matrices = family_for(model.config), model.tensors(), adaptable(model)
    found: dict[str, tuple[str, ...]] = {}
    for bound in bindings(family, model.config, ours):
        if bound.ours[0] not in matrices or bound.ours[0] == "embed.weight" or len(bound.ours) > 1:
            continue
        sample = ours[bound.ours[0]]
        probe = torch.arange(sample.numel()).view(sample.shape)
        parts, modules = bound.to([probe]), bound.theirs
        if family is None:
            parts = list(probe.unbind()) if probe.ndim == 3 else parts
            modules = tuple(f"model.{bound.theirs[0]}" + f".{e}" * (probe.ndim == 3) for e in range(len(parts)))
        if all(p.ndim == 2 for p in parts) and torch.equal(torch.stack(parts).view_as(probe), probe):
            found[bound.ours[0]] = tuple(m.removesuffix(".weight") for m in modules)
    return found


def unsaved(model: Transformer) -> list[str]:
    """The adapted matrices that a folder cannot hold: embeddings, and what the family fuses. They can only be merged."""
    theirs = names(_empty(model))
    return [n for n, (_, slot) in slots(model).items() if slot.lora_a is not None and n not in theirs]


@torch.no_grad()
def save_adapter(model: Transformer, folder: Path, base: str | None = None) -> None:
    """Writes a model's adapters. base: what they were trained on (a folder or a name on the hub). Equal adapters give equal bytes.

    UsageError for a model without adapters, for an embedding, and for matrices that the family fuses: those can only be merged.
    """
    from safetensors.torch import save_file

    state = adapted(model)
    if state is None:
        raise UsageError("the model has no adapters, so there is nothing to save")
    theirs = names(_empty(model))
    out: dict[str, Tensor] = {}
    for name, (_, slot) in slots(model).items():
        if slot.lora_a is None:
            continue
        if name not in theirs:
            raise UsageError(f"{name!r} is no matrix of its own in the published layout\nway out: merge(model) and export all of it")
        for leaf, written in LEAVES.items():
            if (value := getattr(slot, leaf)) is not None:
                parts = value.unbind() if value.ndim > (1 if leaf == "magnitude" else 2) else [value]
                out |= {f"{PREFIX}{m}.{written}": p.detach().cpu().contiguous().clone() for m, p in zip(theirs[name], parts, strict=True)}
    if bad := [n for n, t in out.items() if not bool(torch.isfinite(t).all())]:
        raise ValueError(f"tensor {bad[0]!r} holds NaN or infinity: such adapters are not saved")
    modules = sorted({m for n in state.names for m in theirs[n]})
    write_json(folder / CONFIG, _written(state.config, modules, base))
    with atomic(folder / WEIGHTS) as file:
        save_file(out, file, metadata={"format": "pt"})


def _written(config: LoRA | DoRA, modules: list[str], base: str | None) -> dict[str, Any]:
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": config.rank,
        "lora_alpha": config.alpha,
        "lora_dropout": 0.0,
        "use_rslora": config.scaling == "sqrt_rank",
        "use_dora": isinstance(config, DoRA),
        "init_lora_weights": True,
        "target_modules": modules,
        "modules_to_save": None,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
    }


def load_adapter(model: Transformer, folder: Path) -> Adapted:
    """Attaches the adapters of a folder to a model without any. UsageError names entries and tensors that have no place here."""
    file = folder / CONFIG
    if not file.is_file():
        raise UsageError(f"{folder.name!r} has no {CONFIG}: it is no folder of adapters")
    config = _read(read_json(file))
    if adapted(model) is not None:
        raise UsageError("the model has adapters already\nway out: merge(model) or detach(model) first")
    given, theirs = read_tensors(folder), names(model)
    leaves = [leaf for leaf in LEAVES if leaf != "magnitude" or isinstance(config, DoRA)]
    wanted = {n: {leaf: [f"{PREFIX}{m}.{LEAVES[leaf]}" for m in modules] for leaf in leaves} for n, modules in theirs.items()}
    found = [n for n, keys in wanted.items() if any(k in given for parts in keys.values() for k in parts)]
    expected = {k for n in found for parts in wanted[n].values() for k in parts}
    if wrong := sorted(expected ^ set(given)):
        why = "is missing" if wrong[0] in expected else "has no place in this model"
        raise UsageError(f"{WEIGHTS}: {len(wrong)} tensors do not fit; {wrong[0]!r} {why}\nway out: the base that they were trained on")
    values: dict[str, Tensor] = {}
    shapes = adaptable(model)
    for name in found:
        *stack, out, width = shapes[name].shape
        shape = {"lora_a": (config.rank, width), "lora_b": (out, config.rank), "magnitude": (out,)}
        for leaf, keys in wanted[name].items():
            for key in keys:
                if tuple(given[key].shape) != shape[leaf] or not bool(torch.isfinite(given[key]).all()):
                    raise UsageError(f"{WEIGHTS}: {key!r} is {tuple(given[key].shape)}, wanted {shape[leaf]}, all finite")
            values[f"{name}.{leaf}"] = torch.stack([given[k] for k in keys]) if stack else given[keys[0]]
    state = attach(model, config.replace(targets=tuple(found), skip=()), 0)
    with torch.no_grad():
        for name, (_, slot) in slots(model).items():
            for leaf in leaves:
                getattr(slot, leaf).copy_(values[f"{name}.{leaf}"])
    return state


def _read(data: dict[str, Any]) -> LoRA | DoRA:
    """The config of an adapter_config.json; UsageError for what is not computed here."""
    if data.get("peft_type") != "LORA":
        raise UsageError(f"{CONFIG}: peft_type = {data.get('peft_type')!r}\nsupported: 'LORA' (DoRA as use_dora)")
    for key in (
        "modules_to_save",
        "rank_pattern",
        "alpha_pattern",
        "fan_in_fan_out",
        "lora_bias",
        "layer_replication",
        "alora_invocation_tokens",
    ):
        if data.get(key):
            raise UsageError(f"{CONFIG}: {key} = {data[key]!r} is not computed here\nway out: merge it with the library that wrote it")
    if data.get("bias", "none") != "none":
        raise UsageError(f"{CONFIG}: bias = {data['bias']!r} is not computed here\nsupported: 'none'")
    kind = DoRA if data.get("use_dora") else LoRA
    scaling: Literal["rank", "sqrt_rank"] = "sqrt_rank" if data.get("use_rslora") else "rank"
    return kind(rank=data.get("r", 8), alpha=data.get("lora_alpha", 8), scaling=scaling)


def _empty(model: Transformer) -> Transformer:
    """A model of the same description without values."""
    return Transformer(model.config, device="meta")
