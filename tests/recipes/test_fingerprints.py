"""A committed table of fingerprints: they move only on purpose.

A change here means that finished work of every user is rebuilt. If that is meant (a knob of a recipe changed, a stage's
version was bumped), write the table anew: `UPSLOPE_SNAPSHOT=1 pytest tests/recipes/test_fingerprints.py`.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from upslope.machine.graph import resolve
from upslope.recipes.load import load

TABLE = Path(__file__).with_name("fingerprints.json")
RECIPES = {
    "tiny": ("tiny", []),
    "tiny, seed 1": ("tiny", ["seed=1"]),
    "tiny with AdamW": ("tiny", ["pretrain.optim.kind=adamw"]),
    "r1_tiny": ("r1_tiny", []),
    "tulu3_tiny": ("tulu3_tiny", []),
}


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_fingerprints_move_only_on_purpose(name: str) -> None:
    recipe, sets = RECIPES[name]
    now = {n.name: n.fp for n in resolve(load(recipe, sets).recipe).nodes.values()}
    known = json.loads(TABLE.read_text()) if TABLE.exists() else {}
    if os.environ.get("UPSLOPE_SNAPSHOT"):
        known[name] = now
        TABLE.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n")
    moved = sorted(s for s in now.keys() | known.get(name, {}).keys() if now.get(s) != known.get(name, {}).get(s))
    assert not moved, f"the identity of {', '.join(moved)} changed"


def test_one_knob_moves_only_what_lies_below_it() -> None:
    plain = {n.name: n.fp for n in resolve(load("tiny").recipe).nodes.values()}
    changed = {n.name: n.fp for n in resolve(load("tiny", ["climb.steps=5"]).recipe).nodes.values()}
    moved = {s for s in plain if plain[s] != changed[s]}
    assert moved == {"climb"} | resolve(load("tiny").recipe).below("climb")
    assert "sft" not in moved
