"""What was planted is found, and little else, on a small corpus; `benchmarks/data_planted.py` is the same at full size."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.data import planted
from tests.data.planted import Truth
from upslope.config import Input


@pytest.fixture(scope="module")
def truth(tmp_path_factory: pytest.TempPathFactory) -> Truth:
    return planted.plant(tmp_path_factory.mktemp("planted") / "c", scale=0.12)


def test_the_truth_is_true(truth: Truth) -> None:
    texts = list(truth.corpus.texts())
    by_id = {i.id: i for i in truth.items}
    assert len(by_id) == len(truth.items) and {x.how for x in truth.leaks} == set(planted.HOW)
    assert all(by_id[x.item].question in texts[x.doc] for x in truth.leaks if x.how == "exact")
    assert not any(by_id[x.item].question in texts[x.doc] for x in truth.leaks if x.how != "exact" and by_id[x.item].benchmark != "tasks")
    assert all(planted.JACCARD[0] - 0.05 < c.jaccard < 1 and texts[c.doc] != texts[c.of] for c in truth.copies)
    taken = [*(x.doc for x in truth.leaks), *truth.decoys, *truth.pii, *{c.of for c in truth.copies}, *(c.doc for c in truth.copies)]
    assert len(set(taken)) == len(taken) and max(taken) < min(d for ds in truth.templates.values() for d in ds)


@pytest.mark.parametrize("background", [False, True])
def test_contamination_is_found(truth: Truth, tmp_path: Path, background: bool) -> None:
    found = planted.contaminated(truth, tmp_path / "o", background=Input(stage="stock") if background else None)
    assert found["recall"]["exact"] >= 0.95 and found["recall"]["edited"] >= 0.8 and found["recall"]["split"] >= 0.8, found["missed"]
    assert found["precision"] >= 0.95 and found["decoys_flagged"] <= 0.15, found["wrong"]


def test_near_copies_and_templates_are_found(truth: Truth, tmp_path: Path) -> None:
    found = planted.deduplicated(truth, tmp_path)
    assert found["recall"] >= 0.98 and found["precision"] >= 0.95, found["wrong"]
    assert found["template_recall"] >= 0.7 and found["template_precision"] >= 0.95, found


def test_personal_data_is_found(truth: Truth, tmp_path: Path) -> None:
    found = planted.personal_data(truth, tmp_path)
    assert found["recall"] >= 0.95 and found["precision"] >= 0.6, (found["missed"], found["natural"])
