"""Every family against transformers 5.23.0: logits, gradients, folders both ways, greedy tokens, and a mutant of every knob."""

from __future__ import annotations

import pytest
import torch

from tests.model import cases_dense, cases_linear, cases_mla, cases_moe, cases_v4
from tests.model.mutations import judge
from tests.model.parity import Case, build, gradients, greedy, our_greedy, our_logits, reloaded, sequences, their_logits
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
    assert len(found) >= len(list(build(case).ours.parameters())) - 10
    wrong = {name: error / norm for name, error, norm in found if error > GRADIENT * max(norm, 1e-6)}
    assert not wrong


@each
@torch.no_grad()
def test_exported_folders_load_and_speak_the_same(case: Case, tmp_path) -> None:  # type: ignore[no-untyped-def]
    pair, prompt = build(case), sequences()[1]
    again = reloaded(case, tmp_path)
    assert float((their_logits(again) - their_logits(pair.theirs)).abs().max()) <= LOGITS
    assert our_greedy(pair.ours, prompt, 12) == greedy(again, prompt, 12)


@each
def test_config_survives_writing_and_reading(case: Case) -> None:
    config, family = build(case).ours.config, FAMILIES[case.kind]
    written = family.write(config)
    assert not isinstance(written, str), written
    assert comparable(family.read(written)) == comparable(config)


@each
def test_every_knob_has_a_mutant_that_is_caught(case: Case) -> None:
    verdict = judge(case, 10 * LOGITS)
    assert verdict.total > 20
    assert verdict.survivors == ()
