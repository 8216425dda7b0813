"""Every lab's preset through the whole recipe, small: it trains, samples, climbs, is compared, merged and released."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.micro import micro
from upslope.config import FrozenDict
from upslope.machine import run as machine
from upslope.machine.record import StageRecord
from upslope.machine.run import record
from upslope.machine.stage import Recipe
from upslope.machine.store import Store
from upslope.recipes.labs import PRESETS, get
from upslope.recipes.scale import scale
from upslope.train.init import Scratch

QUICK = ("nemotron3_nano",)
"""Between them: latent attention, an indexer shared by layers, MTP, Mamba-2, mixtures of both kinds of expert."""
LEARNT = {"keepers": "nothing to keep", "pairs": "no pair", "reward_model": "no pair", "preference": "no pair"}
"""Stages that need right answers, which a model of this budget need not give: they may end with that reason."""

pytestmark = pytest.mark.xdist_group("labs")


def recipe(folder: Path, name: str) -> Recipe:
    """The micro recipe with the lab's model at 300,000 parameters."""
    base = micro(folder)
    stages = dict(base.stages)
    model = scale(get(name).model, "300k", context=512, vocab=512)
    stages["pretrain"] = stages["pretrain"].replace(init=Scratch(model=model), length="12st")
    return base.replace(name=f"micro_{name}", stages=FrozenDict(stages))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("labs")


@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n in QUICK else pytest.mark.slow) for n in PRESETS])
def test_a_lab_runs_end_to_end(name: str, folder: Path) -> None:
    store = Store(folder / "store")
    outcome = machine.run(recipe(folder, name), store, inline=True)
    assert {n: why for n, why in outcome.errors.items() if LEARNT.get(n, "\n\n") not in why} == {}
    seen = {s.name: s for s in record(store, outcome.name).stages}
    for stage in ("pretrain", "midtrain", "eval_base", "sft", "climb", "answers", "drafts", "eval_climb"):
        assert seen[stage].state == "sealed", stage
    assert _backends(seen["pretrain"]) or name in ("deepseek_v4_flash", "deepseek_v4_pro")


def _backends(stage: StageRecord) -> dict[str, str]:
    rows = [r for r in stage.events if r.get("kind") == "attention"]
    found: dict[str, str] = rows[-1]["backends"]
    return found
