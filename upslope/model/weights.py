"""Weights in and out: safetensors in Hugging Face's names, both ways, and handles by which weights travel to an engine."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from upslope.config import UsageError
from upslope.machine.files import atomic, link, read_json, write_json
from upslope.model.config import ModelConfig
from upslope.model.families import FAMILIES, Family, family_of, names
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


def family_for(config: ModelConfig) -> Family | None:
    """The published family that names this config's tensors; None = our own names."""
    found = family_of(config)
    return None if isinstance(found, str) else found[0]


def live(model: Transformer) -> Live:
    """A handle on a model's current weights."""

    def named() -> Iterator[tuple[str, Tensor]]:
        parameters = dict(model.named_parameters())
        for ours, theirs in names(family_for(model.config), parameters).items():
            yield theirs, parameters[ours].detach()

    return Live(named)


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
    parameters = dict(model.named_parameters())
    wanted = names(family, parameters)
    rest = dict(given)
    if model.head is None and family is not None and "lm_head.weight" in rest:  # some writers store a tied head twice
        head = rest.pop("lm_head.weight")
        if not torch.equal(head, rest.get("model.embed_tokens.weight", head)):
            raise UsageError("tie_word_embeddings = true, but lm_head.weight is another matrix\nway out: false in config.json")
    missing = [t for t in wanted.values() if t not in rest]
    unexpected = sorted(set(rest) - set(wanted.values()))
    shapes = [
        f"{t} {tuple(rest[t].shape)}, wanted {tuple(parameters[o].shape)}"
        for o, t in wanted.items()
        if t in rest and rest[t].shape != parameters[o].shape
    ]
    if missing or unexpected or shapes:
        lines = ["the tensors do not fit the config:"]
        lines += [
            f"{len(v)} {k}: {', '.join(v[:3])}{', ...' if len(v) > 3 else ''}"
            for k, v in (("missing", missing), ("unexpected", unexpected), ("misshapen", shapes))
            if v
        ]
        raise UsageError("\n".join([*lines, "way out: give the config.json that was saved with these weights"]))
    for ours, theirs in wanted.items():
        if not bool(torch.isfinite(rest[theirs]).all()):
            raise UsageError(f"tensor {theirs!r} holds NaN or infinity: such weights are refused")
        parameters[ours].copy_(rest[theirs])
    return model


def load_weights(config: ModelConfig, folder: Path) -> Transformer:
    """The model of a config with the weights of a folder, float32, evaluation mode."""
    return copy_into(Transformer(config), read_tensors(folder), family_for(config)).eval()


def save_weights(model: Transformer, tokenizer: Tokenizer | None, folder: Path) -> None:
    """Writes a weights folder: in the names of a published family where one expresses the config, else in our own.

    Equal weights give equal bytes. ValueError for weights that are not finite.
    """
    found = family_of(model.config)
    family, data = (None, {"model_type": NATIVE}) if isinstance(found, str) else found
    _save(model, tokenizer, folder, family, data)


def export_hf(model: Transformer, tokenizer: Tokenizer | None, folder: Path) -> None:
    """Writes a folder that `transformers` loads. UsageError, with the reasons, where no published family expresses the config."""
    found = family_of(model.config)
    if isinstance(found, str):
        raise UsageError(f"no published architecture here expresses this model:\n{found}\nway out: keep it as a checkpoint of ours")
    _save(model, tokenizer, folder, *found)


def _save(model: Transformer, tokenizer: Tokenizer | None, folder: Path, family: Family | None, data: dict[str, Any]) -> None:
    from safetensors.torch import save_file

    parameters = dict(model.named_parameters())
    out = {theirs: parameters[ours].detach().float().cpu().contiguous() for ours, theirs in names(family, parameters).items()}
    for name, tensor in out.items():
        if not bool(torch.isfinite(tensor).all()):
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
    if not isinstance(data, dict) or (kind := data.get("model_type")) not in FAMILIES:
        shown = data.get("model_type") if isinstance(data, dict) else data
        raise UsageError(f"config.json: model_type = {shown!r} is not mapped here\nmapped: {', '.join(FAMILIES)}")
    family = FAMILIES[kind]
    return copy_into(Transformer(family.read(data)), read_tensors(folder), family).eval()
