"""What every reward must do, whatever it rewards; and what plain functions of users become."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter

from tests.rl.support import trace
from upslope.chat.messages import Message
from upslope.config import UsageError, kinds
from upslope.machine.context import Context
from upslope.rl.protocol import TOTAL, Done, Grader, Reward, Score, Trace

FIELDS: dict[str, dict[str, Any]] = {
    "length": {"limit": 10},
    "overlong": {"limit": 10, "cache": 4},
    "weighted": {"parts": [{"reward": "exact"}, {"reward": "format", "weight": 0.1}]},
    "gated": {"vetoes": [{"reward": "secret"}], "quality": "exact"},
}
MODELS = {"reward_model"}  # needs a checkpoint: tests/align
REWARDS = sorted(set(kinds(Reward)) - MODELS)
FACTS = {"family": "add", "level": 1.0, "truth": {"answer": "2", "word": "fox"}}


def answers(texts: Sequence[str], group: str = "0") -> list[Trace]:
    return [
        trace(None, range(1, 3 + i), id=f"{group}.{i}", group=group, reply=Message("assistant", text), facts=FACTS)
        for i, text in enumerate(texts)
    ]


def made(kind: str, **fields: Any) -> Reward:
    return TypeAdapter(Reward).validate_python({"kind": kind, **FIELDS.get(kind, {}), **fields})


def values(grader: Grader, group: Sequence[Trace]) -> list[Score]:
    return [s[TOTAL] for s in grader.score(group)]


@pytest.fixture(params=REWARDS)
def grader(request: pytest.FixtureRequest, tmp_path: Path) -> Grader:
    return made(request.param).prepare(Context.scratch(tmp_path, seed=3))


GROUPS = [answers(["2", "3", "fox", ""], "0"), answers(["2"], "1"), [answers(["2"], "2")[0]._replace(done=Done.LENGTH)], []]


def test_one_mapping_per_trace_with_a_total_and_finite_values(grader: Grader) -> None:
    for group in GROUPS:
        said = grader.score(group)
        assert len(said) == len(group)
        for scores in said:
            assert isinstance(scores[TOTAL], Score)
            assert all(isinstance(s, Score) and abs(s.value) < 1e6 for s in scores.values())
            json.dumps({n: s._asdict() for n, s in scores.items()}, allow_nan=False)


def test_all_at_once_equals_one_by_one_and_again(grader: Grader) -> None:
    assert grader.score_all(GROUPS) == [grader.score(g) for g in GROUPS] == grader.score_all(GROUPS)


def test_traces_are_not_changed(grader: Grader) -> None:
    before = [dict(t.scores) for g in GROUPS for t in g]
    grader.score_all(GROUPS)
    assert [dict(t.scores) for g in GROUPS for t in g] == before


# ── plain functions ─────────────────────────────────────────────────────────────────────────────────────────────────

CODE = """
import math, os, time
from helper import BONUS
from upslope.rl.protocol import Score

def score(task, answer):
    assert task["messages"][0]["content"] == "q"
    if answer == "raise":
        return 1 / 0
    if answer == "sleep":
        time.sleep(60)
    if answer == "nan":
        return math.nan
    if answer == "text":
        return "1.0"
    if answer == "die":
        os._exit(0)
    if answer == "none":
        return None
    if answer == "unknown":
        return Score(0.0, False, "cannot tell")
    if answer == "score":
        return Score(0.25, True, "because")
    return float(answer == task.truth["answer"]) + BONUS

def wrong(task):
    return 1.0

async_value = 3
"""


@pytest.fixture
def user(tmp_path: Path) -> Path:
    (tmp_path / "helper.py").write_text("BONUS = 0.5")
    (tmp_path / "reward.py").write_text(CODE)
    return tmp_path / "reward.py"


def test_a_plain_function_is_a_reward_and_its_failures_are_never_zero(user: Path, tmp_path: Path) -> None:
    reward = made(f"{user}:score", seconds=0.4)
    assert type(reward).kind == f"{user}:score"
    grader = reward.prepare(Context.scratch(tmp_path))
    said = values(grader, answers(["2", "3", "raise", "sleep", "nan", "text", "die", "none", "unknown", "score", "2"]))
    grader.close()
    assert [s.value for s in said if s.valid] == [1.5, 0.5, 0.25, 1.5]
    assert [s.valid for s in said] == [True, True, False, False, False, False, False, False, False, True, True]
    assert "ZeroDivisionError" in said[2].evidence
    assert "timeout" in said[3].evidence
    assert said[9].evidence == "because"


def test_a_function_of_a_package_is_imported_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_lab").mkdir()
    (tmp_path / "my_lab" / "__init__.py").write_text("")
    (tmp_path / "my_lab" / "base.py").write_text("def size(x):\n    return len(x)")
    (tmp_path / "my_lab" / "rewards.py").write_text("from .base import size\n\ndef brevity(task, answer):\n    return -size(answer)")
    monkeypatch.syspath_prepend(str(tmp_path))
    grader = made("my_lab.rewards:brevity").prepare(Context.scratch(tmp_path))
    said = values(grader, answers(["2", "333"]))
    grader.close()
    assert [s.value for s in said] == [-1, -3]


def test_what_is_no_reward_is_refused_with_a_way_out(user: Path) -> None:
    with pytest.raises((UsageError, ValueError), match="cannot be called as score"):
        made(f"{user}:wrong")
    with pytest.raises((UsageError, ValueError), match="not a"):
        made(f"{user}:async_value")
    with pytest.raises((UsageError, ValueError), match="did you mean exact"):
        made("exakt")


def test_scores_of_what_functions_return() -> None:
    assert Score.of(True) == Score(1.0)
    assert Score.of(2) == Score(2.0)
    for bad in (float("nan"), float("inf"), "1", None, [1.0], Score(float("nan"))):
        assert not Score.of(bad).valid
