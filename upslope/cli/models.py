"""Finding models by name, and handing them to other tools."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from upslope.config import UsageError
from upslope.machine.files import walk, write_text
from upslope.machine.record import RunRecord, StageRecord
from upslope.machine.run import record
from upslope.machine.store import Store

FORMATS = ("hf",)
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


def export_model(what: str, folder: Path, to: str, verify: bool, store: Store) -> dict[str, Any]:
    """Copies a model's Hugging Face folder; one that no gate decided on is stamped ungated. UsageError for other formats."""
    if to not in FORMATS:
        raise UsageError(f"--to {to!r}: formats: {', '.join(FORMATS)}")
    if folder.exists() and any(folder.iterdir()):
        raise UsageError(f"{folder.name!r} exists and is not empty\nway out: name a new folder")
    found = find_model(what, store)
    if found.run is not None and found.stage is not None:
        store.open(found.stage.kind, found.stage.fp)  # verifies every digest
    for file in walk(found.folder):
        target = folder / file.relative_to(found.folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, target)
    if not found.gated and not (folder / "README.md").exists():
        write_text(
            folder / "README.md", f"---\n{UNGATED}\n---\n\nExported from {found.label}. No release gate has decided on this model.\n"
        )
    line = f"{found.label} → {folder}" + ("" if found.gated else "  (ungated: no gate decided on it)")
    body: dict[str, Any] = {"model": found.label, "folder": str(folder), "gated": found.gated, "files": [p.name for p in walk(folder)]}
    if verify:
        body["verified"] = verify_export(found.folder, folder)
        line += f"\n{body['verified']} greedy tokens equal after reload in transformers"
    return {**body, "line": line}


def verify_export(source: Path, exported: Path, prompts: int = 8, new: int = 32) -> int:
    """Greedy tokens of `source` in our engine equal those of `exported` in transformers; returns how many were compared."""
    import os

    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    try:
        import transformers
    except ImportError:
        raise UsageError("--verify needs transformers\nway out: pip install 'upslope[hf]'") from None
    import torch

    from upslope.generate.engine import LocalEngine, Request, Sampling, generate
    from upslope.model.weights import import_hf
    from upslope.tokens.tokenizer import Tokenizer

    tokenizer = Tokenizer.load(source)
    engine = LocalEngine(import_hf(source), tokenizer, numerics="fp32")
    texts = ["sort: 9 3 7", "add: 12 + 7", "The", "def f(x):", "1 2 3", "Hello", "reverse: abc", "="][:prompts]
    ids = [tokenizer.encode(t) for t in texts]
    ours = generate(engine, [Request(str(i), p, Sampling(max_new=new, temperature=0.0), 0) for i, p in enumerate(ids)])
    theirs = transformers.AutoModelForCausalLM.from_pretrained(exported, dtype=torch.float32).eval()
    again = transformers.AutoTokenizer.from_pretrained(exported)
    compared = 0
    for text, prompt, mine in zip(texts, ids, ours):
        if again(text, add_special_tokens=False)["input_ids"] != list(prompt):
            raise UsageError(f"the exported tokenizer reads {text!r} differently")
        with torch.no_grad():
            out = theirs.generate(torch.tensor([list(prompt)]), max_new_tokens=len(mine.ids), do_sample=False, pad_token_id=tokenizer.pad)
        got = out[0, len(prompt) :].tolist()
        if got != mine.ids.tolist()[: len(got)] or len(got) != len(mine.ids):
            raise UsageError(f"the exported model continues {text!r} differently: {got[:6]} instead of {mine.ids.tolist()[:6]}")
        compared += len(got)
    return compared
