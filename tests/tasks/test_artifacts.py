from collections import Counter
from pathlib import Path

import pytest

from upslope.config import UsageError
from upslope.machine.files import digest_path
from upslope.tasks.artifacts import Tasks
from upslope.tasks.deal import deal
from upslope.tasks.families import Drawn, cell
from upslope.tasks.task import Task
from upslope.tasks.verify import verify


def drawn(count: int = 5) -> list[Drawn]:
    return [d for f in ("add", "sort") for lv in (1, 2) for s in ("train", "heldout") for d in cell(f, lv, s, count, 0)]  # type: ignore[arg-type]


def test_tasks_come_back_by_split_and_are_the_same_bytes_again(tmp_path: Path) -> None:
    tasks = Tasks.write(tmp_path / "1", drawn())
    Tasks.write(tmp_path / "2", drawn())
    assert digest_path(tmp_path / "1") == digest_path(tmp_path / "2")
    train, held = tasks.read("train"), tasks.read("heldout")
    assert (len(train), len(held), len(tasks.read())) == (20, 20, 40)
    original = next(d.task for d in drawn() if d.split == "train")
    assert (train[0].id, train[0].messages, train[0].level, train[0].tools) == (original.id, original.messages, original.level, ())
    assert train[0].prompt == original.prompt
    assert isinstance(train[0].truth, dict)
    assert verify(train[0].family, train[0].truth, str(train[0].truth["answer"])) == 1.0


def test_leaks_between_splits_and_repeated_ids_are_refused(tmp_path: Path) -> None:
    a, b = drawn(2)[:2]
    with pytest.raises(UsageError, match="both splits"):
        Tasks.write(tmp_path, [a, Drawn(b.task, "heldout", a.canonical)])
    with pytest.raises(UsageError, match="occurs twice"):
        Tasks.write(tmp_path, [a, a])
    with pytest.raises(UsageError, match="'train' or 'heldout'"):
        Tasks.write(tmp_path, [a]).read("test")  # type: ignore[arg-type]


def test_unknown_families_need_an_answer() -> None:
    assert verify("mine", {"answer": "4  2"}, "4 2") == 1.0
    with pytest.raises(UsageError, match="no 'answer' string"):
        verify("mine", {"solution": 42}, "42")


def test_dealing_is_balanced_and_goes_through_every_task_before_one_returns() -> None:
    tasks = [d.task for d in drawn(50) if d.split == "train"]
    dealt = list(deal(tasks, 3000, (3.0, 1.0), seed=0))
    cells = Counter((t.family, t.level) for t in dealt)
    assert cells["add", 1.0] / 3000 == pytest.approx(0.375, abs=0.04)
    assert cells["sort", 2.0] / 3000 == pytest.approx(0.125, abs=0.03)
    for family, level in cells:
        mine = [t.id for t in dealt if (t.family, t.level) == (family, level)]
        pile = len({t.id for t in tasks if (t.family, t.level) == (family, level)})
        for at in range(0, len(mine) - pile, pile):
            assert len(set(mine[at : at + pile])) == pile
        assert mine[:pile] != mine[pile : 2 * pile]
    assert dealt == list(deal(tasks, 3000, (3.0, 1.0), seed=0)) != list(deal(tasks, 3000, (3.0, 1.0), seed=1))
    assert {t.level for t in deal(tasks, 100, (0.0, 1.0), 0)} == {2.0}


def test_dealing_refuses_what_it_cannot_deal() -> None:
    with pytest.raises(UsageError, match="no tasks"):
        list(deal([], 3, (1.0,), 0))
    with pytest.raises(UsageError, match="level_weights"):
        list(deal([Task("a", "mine", (), (), None, 9.0)], 3, (1.0,), 0))
