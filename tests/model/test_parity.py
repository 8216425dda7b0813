"""Every family against transformers 5.23.0: logits, gradients, folders both ways, greedy tokens, and a mutant of every knob."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.model import cases_dense, cases_linear, cases_mla, cases_moe, cases_v4
from tests.model.mutations import TRAINING_ONLY, UNMADE, Mutant, judge, mutants
from tests.model.parity import (
    Case,
    build,
    from_older,
    gradients,
    greedy,
    our_greedy,
    our_logits,
    rebuilt,
    reloaded,
    sequences,
    their_logits,
)
from tests.model.support import loud
from upslope.config import UsageError
from upslope.model.families import FAMILIES
from upslope.model.families.dsl import comparable

CASES = [c for module in (cases_dense, cases_moe, cases_mla, cases_linear, cases_v4) for c in module.CASES]
LOGITS, GRADIENT = 1e-5, 1e-4

pytestmark = [pytest.mark.xdist_group("parity"), pytest.mark.filterwarnings("ignore")]
each = pytest.mark.parametrize("case", CASES, ids=[c.name for c in CASES])


def test_every_family_has_a_case() -> None:
    assert {c.kind for c in CASES} == set(FAMILIES)


@each
@torch.no_grad()
def test_logits_equal_packed_against_separate(case: Case) -> None:
    pair = build(case)
    wanted = their_logits(pair.theirs)
    assert float(wanted.abs().max()) > 1
    assert float((our_logits(pair.ours) - wanted).abs().max()) <= LOGITS


@each
def test_gradients_equal(case: Case) -> None:
    found = list(gradients(case))
    assert {name for name, _, _ in found} == {name for name, _ in build(case).ours.named_parameters()}
    wrong = {name: error / norm for name, error, norm in found if error > GRADIENT * max(norm, 1e-6)}
    assert not wrong
    silent = {name for name, _, norm in found if norm < 1e-6}
    assert all(".indexer." in name for name in silent), "what chooses tokens has no gradient of the loss; all else must be heard"


@each
@torch.no_grad()
def test_exported_folders_load_and_speak_the_same(case: Case, tmp_path: Path) -> None:
    pair, prompt = build(case), sequences()[1]
    again = reloaded(pair.ours, tmp_path)
    assert float((their_logits(again) - their_logits(pair.theirs)).abs().max()) <= LOGITS
    assert our_greedy(pair.ours, prompt, 12) == greedy(again, prompt, 12)


@each
def test_config_survives_writing_and_reading(case: Case) -> None:
    config, family = build(case).ours.config, FAMILIES[case.kind]
    written = family.write(config)
    assert not isinstance(written, str), written
    assert comparable(family.read(written)) == comparable(config)


@each
def test_every_mutant_of_every_knob_is_caught(case: Case) -> None:
    verdict = judge(case, 10 * LOGITS)
    assert verdict.total > 30
    assert verdict.logits > 20
    assert verdict.survivors == ()
    assert {path.split(".", 2)[2] for path in verdict.unmade} <= set(UNMADE)


def test_what_only_training_reads_has_a_test() -> None:
    root = Path(__file__).parents[2]
    for test in TRAINING_ONLY.values():
        file, name = test.split("::")
        assert f"def {name}(" in (root / file).read_text(), test


STRETCHED = (
    {"kind": "linear", "factor": 3.0},
    {"kind": "llama3", "factor": 3.0, "original": 16},
    *({"kind": "yarn", "factor": 4.0, "original": 16, **more} for more in ({}, {"temperature": "softmax"}, {"temperature": "none"})),
    *({"kind": "yarn", "factor": 4.0, "original": 16, **more} for more in ({"mscale": 0.7}, {"truncate": False})),
)


@each
@torch.no_grad()
def test_a_family_takes_only_what_it_computes(case: Case, tmp_path: Path) -> None:
    """Of one knob turned: either the family refuses it, or the folder speaks as we do. None of our own reading is in between."""
    family, done = FAMILIES[case.kind], 0
    found = {m.config: m for m in mutants(build(case).ours.config, STRETCHED, together=True) if isinstance(m, Mutant)}
    numbers: set[str] = set()
    for i, mutant in enumerate(found.values()):
        if mutant.path in numbers or isinstance(family.write(mutant.config), str):
            continue
        if type(mutant.value) in (int, float) and not mutant.path.endswith(("fraction", "scale")):
            numbers.add(mutant.path)  # one value of a number is as good as another
        try:
            ours = rebuilt(case, mutant.config)
        except UsageError:
            if mutant.path != "head":
                continue  # other tensors
            ours = loud(mutant.config)
        off = float((their_logits(reloaded(ours, tmp_path / str(i))) - our_logits(ours)).abs().max())
        assert off <= 10 * LOGITS, (mutant.path, mutant.value)
        done += 1
    assert done >= 1


@pytest.mark.parametrize("name", cases_dense.OLDER)
@torch.no_grad()
def test_older_config_files_mean_what_transformers_reads(name: str, tmp_path: Path) -> None:
    pair = from_older(cases_dense.OLD_BASE | cases_dense.OLDER[name], tmp_path)
    assert float((our_logits(pair.ours) - their_logits(pair.theirs)).abs().max()) <= LOGITS
