"""Our block against the released modelling code: transformers 5.23.0, eager attention, fp32 on the CPU, weights that make knobs loud."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from upslope.machine.files import write_json
from upslope.machine.rng import rng
from upslope.model.config import ModelConfig
from upslope.model.families import FAMILIES, bindings
from upslope.model.transformer import Transformer
from upslope.model.weights import copy_into, export_hf, import_hf, read_tensors, theirs_of

LENGTHS = (23, 14)
VOCAB = 80
BASE: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "rms_norm_eps": 0.05,
}


class Case(NamedTuple):
    """One architecture at toy size. kind: model_type. config: entries of its configuration class over `BASE`. gain: of the matrices."""

    name: str
    kind: str
    config: dict[str, Any]
    gain: float = 1.5

    @property
    def entries(self) -> dict[str, Any]:
        """The whole configuration; an entry of None leaves BASE's out."""
        return {k: v for k, v in {**BASE, **self.config}.items() if v is not None}


def loudly(model: Any, gain: float) -> None:
    """Weights far from neutral: matrices with std gain / sqrt(fan_in), vectors round their neutral value, selection biases that matter."""
    with torch.no_grad():
        for name, p in [*model.named_parameters(), *model.named_buffers()]:
            noise = torch.from_numpy(rng(0, "loud", name).standard_normal(tuple(p.shape))).float()
            if "decay" in name or "slope" in name or "inv_freq" in name or name.endswith(("embed_scale", "embed_scale_")):
                continue
            if name.endswith("tid2eid"):
                experts = model.config.n_routed_experts
                table = torch.from_numpy(rng(0, "loud", name).random((p.shape[0], experts)).argsort(1)[:, : p.shape[1]].copy())
                p.copy_(table)
            elif "correction_bias" in name:
                p.copy_(0.2 * noise)
            elif name.endswith(("sinks", "A_log", "dt_bias")):
                p.copy_(noise)
            elif p.ndim == 1:
                p.copy_((p if p.isfinite().all() else 0) + 0.3 * noise)
            elif "embed" in name:
                p.copy_(noise * (0.5 if model.config.tie_word_embeddings else 1.0))
            elif p.ndim >= 2:
                fan_in = (
                    p.shape[-2]
                    if "experts" in name and model.config.model_type == "gpt_oss"
                    else p[0].numel()
                    if p.ndim == 3 and 1 in p.shape
                    else p.shape[-1]
                )
                quiet = 3e-3 if ".indexer.wk." in name else 1.0  # or the norm that follows would drown its eps of 1e-6
                p.copy_(noise * quiet * gain / fan_in**0.5)


class Pair(NamedTuple):
    """Their model, the folder that they wrote, our model read from it."""

    theirs: Any
    folder: Path
    ours: Transformer


KEPT: list[tempfile.TemporaryDirectory[str]] = []


_PAIRS: dict[str, Pair] = {}


def build(case: Case) -> Pair:
    """Both models, made once per process."""
    if case.name not in _PAIRS:
        from transformers import AutoConfig, AutoModelForCausalLM

        config = AutoConfig.for_model(case.kind, **case.entries)
        theirs = AutoModelForCausalLM.from_config(config, attn_implementation="eager").float().eval()
        loudly(theirs, case.gain)
        keep = tempfile.TemporaryDirectory()
        KEPT.append(keep)
        folder = Path(keep.name) / "theirs"
        theirs.save_pretrained(folder)
        _PAIRS[case.name] = Pair(theirs, folder, import_hf(folder))
    return _PAIRS[case.name]


def sequences() -> list[Tensor]:
    """Two rows of random ids, of odd lengths."""
    return [torch.from_numpy(rng(1, "ids", i).integers(1, VOCAB, n)) for i, n in enumerate(LENGTHS)]


def packed() -> tuple[Tensor, Tensor]:
    """The same rows in one, with their segment numbers."""
    rows = sequences()
    return torch.cat(rows), torch.repeat_interleave(torch.arange(len(rows)), torch.tensor([len(r) for r in rows]))


def their_logits(theirs: Any) -> Tensor:
    """Each row on its own, without a cache."""
    return torch.cat([theirs(row[None], use_cache=False).logits[0] for row in sequences()])


def our_logits(ours: Transformer) -> Tensor:
    """All rows packed."""
    ids, seg = packed()
    return ours.logits(ours(ids, seg))


def loss(logits: Tensor) -> Tensor:
    """A scalar that every logit moves."""
    target = torch.roll(packed()[0], -1)
    return torch.nn.functional.cross_entropy(logits, target)


def gradients(case: Case) -> Iterator[tuple[str, float, float]]:
    """(our tensor, norm of the difference, norm of theirs) of the loss's gradients, theirs mapped to our names by the family's rules."""
    theirs, _, ours = build(case)
    theirs.zero_grad()
    ours.zero_grad()
    loss(their_logits(theirs)).backward()
    loss(our_logits(ours)).backward()
    with tempfile.TemporaryDirectory() as folder:
        state = {n: p.detach().clone() for n, p in theirs.named_parameters()}
        with torch.no_grad():
            for p in theirs.parameters():
                p.copy_(torch.zeros_like(p) if p.grad is None else p.grad)
        theirs.save_pretrained(folder)  # in the names of the folder, whatever they are in memory
        with torch.no_grad():
            for n, p in theirs.named_parameters():
                p.copy_(state[n])
        mapped = read_tensors(Path(folder))
    tensors = ours.tensors()
    for bound in bindings(FAMILIES[case.kind], ours.config, tensors):
        if not all(n in mapped for n in bound.theirs) or not tensors[bound.ours[0]].requires_grad:
            continue
        for name, wanted in zip(bound.ours, bound.of([mapped[n] for n in bound.theirs])):
            got = tensors[name].grad
            got = torch.zeros_like(wanted) if got is None else got
            yield name, float((got - wanted).norm()), float(wanted.norm())


def greedy(model: Any, prompt: Tensor, new: int) -> list[int]:
    """Greedy tokens of one of their models, recomputing everything at each step."""
    ids = prompt.tolist()
    with torch.no_grad():
        for _ in range(new):
            ids.append(int(model(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
    return ids


def our_greedy(model: Transformer, prompt: Tensor, new: int) -> list[int]:
    """The same by our cache, a token at a time."""
    from upslope.model.cache import Cache

    ids, hold = prompt.tolist(), Cache(model.config, 1)
    with torch.no_grad():
        hidden = model(prompt, cache=hold.at([0]))
        for _ in range(new):
            ids.append(int(model.logits(hidden[-1:]).argmax()))
            hidden = model(torch.tensor(ids[-1:]), cache=hold.at([0]))
    return ids


def rebuilt(case: Case, config: ModelConfig) -> Transformer:
    """Our model of another config with the case's weights; raises where they do not fit."""
    source = build(case).ours
    model = Transformer(config)
    return copy_into(model, dict(theirs_of(source, None)), None).eval()


def reloaded(ours: Transformer, folder: Path) -> Any:
    """Their model, from the folder that we export."""
    from transformers import AutoModelForCausalLM

    export_hf(ours, None, folder)
    return AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").float().eval()


def from_older(entries: dict[str, Any], folder: Path) -> Pair:
    """Both models from a folder whose config.json is an older one, as it is."""
    from transformers import AutoConfig, AutoModelForCausalLM

    write_json(folder / "config.json", entries)
    theirs = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder), attn_implementation="eager").float().eval()
    loudly(theirs, 1.5)
    theirs.save_pretrained(folder)
    write_json(folder / "config.json", entries)
    return Pair(theirs, folder, import_hf(folder))
