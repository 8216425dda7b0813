"""Conformance: every stage kind in the package keeps the promises of a stage."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import upslope.rl
import upslope.stages
from upslope.config import Input, Wants, config_classes, kinds, marks
from upslope.machine.stage import Stage

KINDS = kinds(Stage)
KNOWN = {
    "Artifact",
    "Pages",
    "Corpus",
    "Tokenizer",
    "TokenShards",
    "Mixture",
    "Tasks",
    "Chats",
    "Pairs",
    "Traces",
    "Checkpoint",
    "Classifier",
    "Table",
    "Decision",
    "Release",
}


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_declares_what_it_makes_and_reads(kind: str) -> None:
    cls = KINDS[kind]
    assert cls.__doc__, "a stage explains itself"
    assert cls.makes in KNOWN
    assert cls.run is not Stage.run
    for name, field in cls.model_fields.items():
        if Input in config_classes(field.annotation) and len(config_classes(field.annotation)) == 1 and kind != "command":
            wants = marks(cls, name, Wants)
            assert wants is not None, f"{kind}.{name} does not say what it reads"
            assert set(wants.artifact.split("|")) <= KNOWN


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_a_seed_is_declared_iff_it_is_read(kind: str) -> None:
    cls = KINDS[kind]
    modules = [
        sys.modules[cls.__module__].__file__ or "",
        *([str(Path(upslope.rl.__file__ or "").parent / "climb.py")] if kind == "rl" else []),
    ]
    source = "".join(Path(m).read_text() for m in modules)
    reads = "ctx.rng(" in source or "ctx.seed" in source
    assert reads == cls.seeded, f"{kind}: seeded = {cls.seeded}, but its code {'draws' if reads else 'does not draw'} at random"


def test_stage_configs_load_without_heavy_libraries() -> None:
    names = [p.stem for p in Path(upslope.stages.__file__ or "").parent.glob("*.py") if p.stem != "__init__"]
    code = (
        "import sys, importlib\n"
        + "\n".join(f"importlib.import_module('upslope.stages.{n}')" for n in sorted(names))
        + "\nheavy = [m for m in ('torch', 'pyarrow', 'duckdb', 'numba', 'transformers') if m in sys.modules]\nassert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
