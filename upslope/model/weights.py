"""Weights in and out: safetensors in Hugging Face's names, both ways, and handles by which weights travel to an engine."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from upslope.config import UsageError, dump, validated
from upslope.machine.files import atomic, link, read_json, write_json
from upslope.model import bundle
from upslope.model.adapters import adapted, folded
from upslope.model.config import MTP, ModelConfig
from upslope.model.families import FAMILIES, Binding, Family, bindings, family_of
from upslope.model.transformer import Transformer
from upslope.tokens.template import IM_END

if TYPE_CHECKING:
    from upslope.tokens.tokenizer import Tokenizer

NATIVE = "upslope"  # model_type of a folder in our own names, for configs that no published family expresses


def end_ids(tokenizer: Tokenizer) -> list[int]:
    """Ids that end a completion: end of turn, where the tokenizer has one, and end of text."""
    turn = tokenizer.special.get(IM_END)
    return [*([turn] if turn is not None else []), tokenizer.eos]


class Folder(NamedTuple):
    """Weights on disk: a folder of safetensors."""

    path: Path


class Live(NamedTuple):
    """Weights in memory: named() yields (Hugging Face name, tensor); read at once, not kept."""

    named: Callable[[], Iterator[tuple[str, Tensor]]]


Weights = Folder | Live


@lru_cache(64)  # an engine asks at every change of weights
def family_for(config: ModelConfig) -> Family | None:
    """The published family that names this config's tensors; None = our own names."""
    found = family_of(config)
    return None if isinstance(found, str) else found[0]


def live(model: Transformer) -> Live:
    """A handle on a model's current weights, with adapters folded in."""
    return Live(lambda: theirs_of(model, family_for(model.config)))


def theirs_of(model: Transformer, family: Family | None) -> Iterator[tuple[str, Tensor]]:
    """All tensors of a model in a family's names and shapes (None: our own), with adapters folded in, read at once."""
    ours = model.tensors() if adapted(model) is None else folded(model)
    for bound in bindings(family, model.config, ours):
        yield from zip(bound.theirs, bound.to([ours[name].detach() for name in bound.ours]))


def tensors(weights: Weights) -> dict[str, Tensor]:
    """All tensors behind a handle, by Hugging Face name."""
    return dict(weights.named()) if isinstance(weights, Live) else read_tensors(weights.path)


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """The safetensors of a folder, whole or in shards. Pickles are refused: loading one runs code that its author wrote."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    files = sorted(folder.glob("*.safetensors"))
    if not files:
        pickles = sorted(p.name for suffix in ("bin", "pt", "pth", "ckpt") for p in folder.glob(f"*.{suffix}"))
        if pickles:
            raise UsageError(
                f"{folder.name!r} holds its weights as a pickle ({pickles[0]}): loading it would run code from the file\n"
                "way out: where you trust it, AutoModelForCausalLM.from_pretrained(OLD).save_pretrained(NEW) writes safetensors"
            )
        raise UsageError(f"{folder.name!r} holds no *.safetensors file")
    found: dict[str, Tensor] = {}
    for file in files:
        try:
            part = load_file(file)
        except (SafetensorError, OSError) as e:
            raise UsageError(f"{file.name} cannot be read: {e}\nway out: copy it again; it may be cut short") from None
        if twice := sorted(set(part) & set(found)):
            raise UsageError(f"{folder.name!r}: tensor {twice[0]!r} is in more than one file")
        found |= part
    index = folder / "model.safetensors.index.json"
    if index.is_file() and (lost := sorted(set(read_json(index)["weight_map"]) - set(found))):
        raise UsageError(f"{folder.name!r}: {len(lost)} tensors are in no file, first {lost[0]!r}\nway out: copy the missing shards")
    return found


@torch.no_grad()
def copy_into(model: Transformer, given: Mapping[str, Tensor], family: Family | None) -> Transformer:
    """Copies tensors in a family's names into a model. UsageError lists missing, unexpected and misshapen tensors, and refuses NaN."""
    ours = model.tensors()
    bound = bindings(family, model.config, ours)
    wanted = {name: shape for b in bound for name, shape in _shapes(b, ours)}
    ignored = [re.compile(pattern) for pattern in (*family.derived, *_COPIES)] if family is not None else []
    rest = {name: t for name, t in given.items() if name in wanted or not any(p.search(name) for p in ignored)}
    if model.head is None and family is not None and "lm_head.weight" in rest:  # some writers store a tied head twice
        head = rest.pop("lm_head.weight")
        if not torch.equal(head, rest.get("model.embed_tokens.weight", head)):
            raise UsageError("tie_word_embeddings = true, but lm_head.weight is another matrix\nway out: false in config.json")
    missing = [name for name in wanted if name not in rest]
    unexpected = sorted(set(rest) - set(wanted))
    shapes = [f"{n} {tuple(rest[n].shape)}, wanted {shape}" for n, shape in wanted.items() if n in rest and tuple(rest[n].shape) != shape]
    if missing or unexpected or shapes:
        lines = ["the tensors do not fit the config:"]
        lines += [
            f"{len(v)} {k}: {', '.join(v[:3])}{', ...' if len(v) > 3 else ''}"
            for k, v in (("missing", missing), ("unexpected", unexpected), ("misshapen", shapes))
            if v
        ]
        raise UsageError("\n".join([*lines, "way out: give the config.json that was saved with these weights"]))
    for b in bound:
        for name in b.theirs:
            if rest[name].is_floating_point() and not bool(torch.isfinite(rest[name]).all()):
                raise UsageError(f"tensor {name!r} holds NaN or infinity: such weights are refused")
        for name, value in zip(b.ours, b.of([rest[n] for n in b.theirs])):
            ours[name].copy_(value)
    return model


_COPIES = (r"^model\.layers\.\d+\.embed_tokens\.weight$", r"\.shared_head\.head\.weight$")  # the hub repeats both in MTP modules


def _shapes(bound: Binding, ours: Mapping[str, Tensor]) -> list[tuple[str, tuple[int, ...]]]:
    """Names and shapes of their tensors, by mapping empty ones."""
    empty = [torch.empty_like(ours[name], device="meta") for name in bound.ours]
    return [(name, tuple(t.shape)) for name, t in zip(bound.theirs, bound.to(empty))]


def load_weights(config: ModelConfig, folder: Path) -> Transformer:
    """The model of a config with the weights of a folder, float32, evaluation mode."""
    return copy_into(Transformer(config), read_tensors(folder), family_for(config)).eval()


def save_weights(model: Transformer, tokenizer: Tokenizer | None, folder: Path) -> None:
    """Writes a weights folder: in the names of a published family where one expresses the config, else in our own.

    Equal weights give equal bytes. ValueError for weights that are not finite.
    """
    found = family_of(model.config)
    family, data = (None, {"model_type": NATIVE, NATIVE: dump(model.config)}) if isinstance(found, str) else found
    _save(model, tokenizer, folder, family, data)


def export_hf(model: Transformer, tokenizer: Tokenizer | None, folder: Path) -> None:
    """Writes a folder that `transformers` loads: as a published family, else in our own names with a modelling file (`model.bundle`)."""
    save_weights(model, tokenizer, folder)
    if family_for(model.config) is None:
        bundle.write(folder)


def _save(model: Transformer, tokenizer: Tokenizer | None, folder: Path, family: Family | None, data: dict[str, Any]) -> None:
    from safetensors.torch import save_file

    if other := sorted(p.name for p in folder.glob("*.safetensors*") if p.name != "model.safetensors"):
        raise UsageError(f"{folder.name!r} holds other weights ({other[0]}), which would be read along\nway out: a folder of their own")
    out = {n: t.float() if t.is_floating_point() else t for n, t in theirs_of(model, family)}
    out = {n: t.cpu().contiguous().clone() if t.storage_offset() or not t.is_contiguous() else t.cpu() for n, t in out.items()}
    for name, tensor in out.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise ValueError(f"tensor {name!r} holds NaN or infinity: such weights are not saved")
    if tokenizer is not None:
        if tokenizer.vocab_size > model.config.vocab:
            raise UsageError(f"the tokenizer has {tokenizer.vocab_size} tokens, the model only {model.config.vocab}")
        ends = end_ids(tokenizer)
        data = {**data, "bos_token_id": None, "eos_token_id": ends, "pad_token_id": int(tokenizer.pad)}
        write_json(folder / "generation_config.json", {"eos_token_id": ends, "pad_token_id": int(tokenizer.pad), "do_sample": False})
        tokenizer.copy_to(folder)
        template = tokenizer.path / "chat_template.jinja"  # where imported tokenizers may keep theirs
        if template.is_file() and template != folder / template.name:
            link(template, folder / template.name)
    write_json(folder / "config.json", data)
    with atomic(folder / "model.safetensors") as file:
        save_file(out, file, metadata={"format": "pt"})


def import_hf(folder: Path) -> Transformer:
    """The model of a Hugging Face folder of a mapped family, float32, evaluation mode. UsageError says what does not fit."""
    file = folder / "config.json"
    if not file.is_file():
        raise UsageError(f"{folder.name!r} has no config.json: it is not a Hugging Face model folder")
    try:
        data = read_json(file)
    except ValueError as e:
        raise UsageError(f"{folder.name}/config.json is not JSON: {e}") from None
    if not isinstance(data, dict) or (kind := data.get("model_type")) not in (*FAMILIES, NATIVE):
        shown = data.get("model_type") if isinstance(data, dict) else data
        raise UsageError(f"config.json: model_type = {shown!r} is not mapped here\nmapped: {', '.join(FAMILIES)}")
    given = read_tensors(folder)
    if kind == NATIVE:
        if not isinstance(data.get(NATIVE), dict):
            raise UsageError(f"config.json: {NATIVE!r} is no description of a model\nway out: copy the folder again")
        given = {name.removeprefix("model."): t for name, t in given.items()}  # as transformers saves a bundle
        return copy_into(Transformer(validated(ModelConfig, data[NATIVE], "config.json")), given, None).eval()
    family = FAMILIES[kind]
    return copy_into(Transformer(_with_mtp(family, data, given)), given, family).eval()


def _with_mtp(family: Family, data: Mapping[str, Any], given: Mapping[str, Tensor]) -> ModelConfig:
    """The config with as many MTP modules as the folder has tensors for: of the last layer's kind, or of what the family puts beyond it."""
    config = family.read(data)
    depth = sum(f"model.layers.{config.depth + k}.eh_proj.weight" in given for k in range(8))
    if not depth:
        return config
    name, block = family.predicts(data, config)
    return config.replace(blocks={**config.blocks, name: block}, mtp=MTP(depth=depth, block=name))
