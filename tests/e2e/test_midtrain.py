"""The recipe midtrain, small: every stage ends, the chain goes on from stage to stage, and both checks say their numbers."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.micro import small_crawl
from upslope.machine import run as machine
from upslope.machine.run import record
from upslope.machine.store import Store
from upslope.recipes.load import load
from upslope.recipes.midtrain import LONGER, SHARES, STEPS
from upslope.report.text import details

CHAIN = (*STEPS, *(s.name for s in LONGER))
SMALL = [
    "problems.form.train=60",
    "worked.form.count=1500",
    "reasoning.form.count=1500",
    *(f"mix_{name}.tokens=20000" for name in SHARES),
    *(f"{name}.length=3st" for name in CHAIN),
    *(f"{name}.needle.samples=3" for name in ("context", "context_before")),
    *(f"{name}.{field}" for name in ("ready", "ready_before") for field in ("prompts=6", "max_new=8")),
]


@pytest.mark.slow
def test_the_recipe_runs_to_its_verdicts(tmp_path: Path) -> None:
    sets = [f'crawl.sources=["{small_crawl(tmp_path)}"]', *SMALL]
    store = Store(tmp_path / "store")
    outcome = machine.run(load("midtrain", sets).recipe, store, inline=True)
    assert outcome.errors == {}
    seen = record(store, outcome.name)
    stages = {s.name: s for s in seen.stages}
    assert all(s.state == "sealed" for s in seen.stages)
    rates = [e["values"]["lr"] for name in CHAIN for e in stages[name].events if e.get("kind") == "metric"]
    assert rates[0] < rates[1] and rates[-1] == pytest.approx(6e-4)
    facts = {name: (s.manifest or {})["facts"] for name, s in stages.items()}
    assert {facts[name]["tokens"] for name in CHAIN} == {3 * 2048}
    assert [c["length"] for c in facts["context"]["needle"]["lengths"]] == [128, 256, 512]
    assert facts["context"]["position_nll"]["beyond"]["past"] == 128
    assert facts["ready"]["verdict"] in ("ready", "not ready", "unclear")
    assert "needles found, percent" in details(seen, stages["context"])
    assert facts["ready"]["text"].splitlines()[1] in details(seen, stages["ready"])
