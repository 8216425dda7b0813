"""Finding models by name, and handing them to other tools."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from upslope.config import UsageError
from upslope.machine.files import read_json, walk, write_text
from upslope.machine.record import RunRecord, StageRecord
from upslope.machine.run import record
from upslope.machine.store import Store

if TYPE_CHECKING:
    from upslope.model.gguf import Stored
    from upslope.model.transformer import Transformer
    from upslope.tokens.tokenizer import Tokenizer

FORMATS = ("hf", "gguf")
UNGATED = "ungated: true"


@dataclass(frozen=True)
class Found:
    """A model on disk. folder: a Hugging Face folder; label: how a person names it; gated: released by a gate; run, stage: where from."""

    folder: Path
    label: str
    gated: bool
    run: RunRecord | None
    stage: StageRecord | None


def find_model(name: str | None, store: Store) -> Found:
    """RUN (its release, else its last checkpoint), RUN/STAGE, or a Hugging Face folder; the newest run by default."""
    if name is not None and (Path(name) / "config.json").is_file():
        return Found(Path(name), Path(name).name, False, None, None)
    run_name, _, stage_name = (name or "").partition("/")
    seen = record(store, run_name or None)
    if stage_name:
        stage = seen.stage(stage_name)
        if stage is None:
            raise UsageError(
                f"run {seen.name} has no stage {stage_name!r}; with a model: {', '.join(s.name for s in _with_models(seen)) or 'none yet'}"
            )
        if stage not in _with_models(seen):
            raise UsageError(f"{seen.name}/{stage_name} holds no model (state: {stage.state}, kind: {stage.kind})")
        return _found(seen, stage)
    stages = _with_models(seen)
    released = [s for s in stages if s.kind == "release"]
    if not stages:
        raise UsageError(f"run {seen.name} has no model yet\nway out: let it finish (`upslope run`), or name an HF folder")
    return _found(seen, (released or stages)[-1])


def _with_models(seen: RunRecord) -> list[StageRecord]:
    kinds = ("checkpoint:Checkpoint", "release:Release")
    usable = [s for s in seen.stages if s.manifest and s.manifest["artifact"].endswith(kinds)]
    return [s for s in usable if not (s.data / "head.safetensors").exists()]


def _found(seen: RunRecord, stage: StageRecord) -> Found:
    return Found(model_folder(stage.data), f"{seen.name}/{stage.name}", stage.kind == "release", seen, stage)


def model_folder(data: Path) -> Path:
    """The Hugging Face folder inside an artifact's data folder."""
    return next((p for p in (data / "weights", data / "model", data) if (p / "config.json").is_file()), data)


def export_model(what: str, folder: Path, form: str, dtype: str | None, verify: bool, store: Store) -> dict[str, Any]:
    """Writes a model for other tools; one that no gate decided on is stamped ungated. UsageError for what a format cannot hold.

    form: "hf", a copy of the Hugging Face folder, with a modelling file where no published architecture expresses the model; or "gguf".
    dtype: of a GGUF file's matrices.
    """
    if form not in FORMATS:
        raise UsageError(f"--format {form!r}: formats: {', '.join(FORMATS)}")
    if dtype is not None and form != "gguf":
        raise UsageError(f"--dtype {dtype!r}: an HF folder holds float32\nway out: leave it out, or --format gguf")
    if folder.exists() and any(folder.iterdir()):
        raise UsageError(f"{folder.name!r} exists and is not empty\nway out: name a new folder")
    found = find_model(what, store)
    if found.run is not None and found.stage is not None:
        store.open(found.stage.kind, found.stage.fp)  # verifies every digest
    line = f"{found.label} → {folder}" + ("" if found.gated else "  (ungated: no gate decided on it)")
    body: dict[str, Any] = {"model": found.label, "folder": str(folder), "gated": found.gated}
    if form == "gguf":
        checked = _write_gguf(found, folder, dtype or "f16", verify)
    else:
        _copy_hf(found, folder)
        compared = verify_export(found.folder, folder) if verify else 0
        checked = (compared, f"{compared} greedy tokens equal after reload in transformers") if verify else None
    if not found.gated and not (folder / "README.md").exists():
        write_text(
            folder / "README.md", f"---\n{UNGATED}\n---\n\nExported from {found.label}. No release gate has decided on this model.\n"
        )
    body["files"] = [p.name for p in walk(folder)]
    if checked is not None:
        body["verified"] = checked[0]
        line += f"\n{checked[1]}"
    return {**body, "line": line}


def _copy_hf(found: Found, folder: Path) -> None:
    """The folder as it is; one in our own names gains the file that makes transformers read it."""
    from upslope.model.bundle import write
    from upslope.model.weights import NATIVE

    for file in walk(found.folder):
        target = folder / file.relative_to(found.folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, target)
    if read_json(folder / "config.json").get("model_type") == NATIVE:
        write(folder)


def _write_gguf(found: Found, folder: Path, dtype: str, verify: bool) -> tuple[int, str] | None:
    """`model.gguf`; with `verify`, how many greedy tokens were compared and what to say."""
    from upslope.model.gguf import STORED, export_gguf
    from upslope.model.weights import import_hf
    from upslope.tokens.tokenizer import Tokenizer

    if dtype not in STORED:
        raise UsageError(f"--dtype {dtype!r}: one of {', '.join(STORED)}")
    tokenizer, model, file = Tokenizer.load(found.folder), import_hf(found.folder), folder / "model.gguf"
    export_gguf(model, tokenizer, file, dtype, found.label)
    return verify_gguf(model, tokenizer, file, dtype) if verify else None


TEXTS = ("sort: 9 3 7", "add: 12 + 7", "The", "def f(x):", "1 2 3", "Hello", "reverse: abc", "=")


def _transformers() -> Any:
    import os

    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    try:
        import transformers
    except ImportError:
        raise UsageError("--verify needs transformers\nway out: pip install 'upslope[hf]'") from None
    return transformers


def verify_export(source: Path, exported: Path, new: int = 32) -> int:
    """Greedy tokens of `source` in our engine equal those of `exported` in transformers; returns how many were compared."""
    transformers = _transformers()
    import torch

    from upslope.model.weights import NATIVE, import_hf
    from upslope.tokens.tokenizer import Tokenizer

    own = read_json(exported / "config.json").get("model_type") == NATIVE  # the code in it is the one that was written just now
    theirs = transformers.AutoModelForCausalLM.from_pretrained(exported, dtype=torch.float32, trust_remote_code=own).eval()
    return _same_tokens(import_hf(source), Tokenizer.load(source), theirs, transformers.AutoTokenizer.from_pretrained(exported), new)


def verify_gguf(source: Transformer, tokenizer: Tokenizer, file: Path, stored: Stored, new: int = 32) -> tuple[int, str]:
    """A GGUF file holds the source's weights up to rounding, and transformers' own reader continues texts as our engine does with them.

    Returns how many greedy tokens were compared and what to say. Where transformers has no reader for the architecture, the weights alone
    are compared, read back by the gguf package.
    """
    from upslope.model.gguf import arch_of, from_gguf, round_off, their_config

    back = from_gguf(file, source.config)
    if (off := round_off(source, back, stored)) is not None:
        raise UsageError(f"the exported tensor {off!r} is further from the model's than rounding to {stored} explains")
    family, arch = arch_of(source.config)
    if not arch.loads:
        return 0, f"all tensors read back within rounding to {stored}; transformers reads no {arch.name}, so no tokens were compared"
    theirs = read_in_transformers(file, _transformers().AutoConfig.for_model(family.kind, **their_config(source.config)))
    again = _transformers().AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    compared = _same_tokens(back, tokenizer, theirs, again, new)
    return compared, f"{compared} greedy tokens equal after reload in transformers"


def read_in_transformers(file: Path, config: Any) -> Any:
    """A model of transformers with the weights that its own reader takes from a GGUF file, float32.

    By the reader itself and not by `from_pretrained(gguf_file=...)`, which asks for accelerate and leaves parts of the config at defaults.
    """
    transformers = _transformers()
    import torch
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    read = load_gguf_checkpoint(str(file), return_tensors=True, model_to_load=model)["tensors"]
    missing = set(model.load_state_dict(read, strict=False).missing_keys) - ({"lm_head.weight"} if config.tie_word_embeddings else set())
    if missing:
        raise UsageError(f"transformers finds no tensor for {min(missing)!r} in {file.name}")
    return model.eval()


def _same_tokens(mine: Transformer, tokenizer: Tokenizer, theirs: Any, again: Any, new: int) -> int:
    """How many greedy tokens our engine and a model of transformers, with its tokenizer, have in common; UsageError where they part."""
    import torch

    from upslope.generate.engine import LocalEngine, Request, Sampling, generate

    ids = [tokenizer.encode(t) for t in TEXTS]
    requests = [Request(str(i), p, Sampling(max_new=new, temperature=0.0), 0) for i, p in enumerate(ids)]
    ours = [c.ids.tolist() for c in generate(LocalEngine(mine, tokenizer, numerics="fp32"), requests)]
    for text, prompt, wanted in zip(TEXTS, ids, ours):
        if again(text, add_special_tokens=False)["input_ids"] != list(prompt):
            raise UsageError(f"the exported tokenizer reads {text!r} differently")
        with torch.no_grad():
            out = theirs.generate(torch.tensor([list(prompt)]), max_new_tokens=len(wanted), do_sample=False, pad_token_id=tokenizer.pad)
        got = out[0, len(prompt) :].tolist()
        if got != wanted:
            raise UsageError(f"the exported model continues {text!r} differently: {got[:6]} instead of {wanted[:6]}")
    return sum(map(len, ours))
