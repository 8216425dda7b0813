"""What each reward pays."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from tests.rl.support import trace
from upslope.chat.messages import Message
from upslope.machine.context import Context
from upslope.rl.protocol import TASK, TOTAL, Done, Trace
from upslope.rl.rewards import Exact, Format, Length, Overlong, Part, Random, Weighted, length_price

FACTS = {"family": "add", "level": 1.0, "truth": {"answer": "2"}}


def group(texts: Sequence[str], reasoning: str = "", lengths: Sequence[int] = ()) -> list[Trace]:
    return [
        trace(None, range(n), id=str(i), reply=Message("assistant", text, reasoning), facts=FACTS)
        for i, (text, n) in enumerate(zip(texts, lengths or [3] * len(texts), strict=True))
    ]


def totals(said: Sequence[object]) -> list[float]:
    return [s[TOTAL].value for s in said]  # type: ignore[index]


def test_exact_pays_right_answers_that_ended() -> None:
    right, wrong, cut = group(["2", "3", "2"])
    assert totals(Exact().score([right, wrong, cut._replace(done=Done.LENGTH)])) == [1, 0, 0]


def test_exact_is_invalid_where_the_verifier_fails() -> None:
    broken = trace(None, reply=Message("assistant", "2"), facts={"family": "add", "truth": {}})
    assert not Exact().score([broken])[0][TOTAL].valid


def test_format_pays_each_rule() -> None:
    fine, empty = group(["2", " "])
    cut = fine._replace(done=Done.LENGTH)
    thought = group(["2"], "because")[0]
    assert totals(Format().score([fine, empty, cut])) == [1, 0.5, 0.5]
    assert totals(Format(thinking="required").score([fine, thought])) == pytest.approx([2 / 3, 1])
    assert totals(Format(thinking="absent").score([fine, thought])) == pytest.approx([1, 2 / 3])


def test_length_price_of_the_report() -> None:
    assert length_price(8192, 32768, 0.25, 0.75) == pytest.approx(0.046875)


@pytest.mark.parametrize(("tokens", "paid"), [(100, 0), (16384, 0), (18432, -0.5), (20480, -1), (30000, -1)])
def test_overlong_punishment_of_the_paper(tokens: int, paid: float) -> None:
    assert totals(Overlong(limit=20480, cache=4096).score([trace(None, range(tokens))])) == [paid]


def test_length_costs_less_where_the_group_fails() -> None:
    easy, hard = group(["2", "2"], lengths=(4, 8)), group(["3", "3"], lengths=(4, 8))
    reward = Length(limit=8, coefficient=0.4)
    assert totals(reward.score(easy)) == pytest.approx([1 - 0.2, 1 - 0.4])
    assert totals(reward.score(hard)) == pytest.approx([-0.1, -0.2])  # rho = 1 / K
    assert totals(reward.replace(by_difficulty=False).score(hard)) == pytest.approx([-0.2, -0.4])
    assert [s[TASK].value for s in reward.score(easy)] == [1, 1]


def test_random_reward_is_a_seeded_coin_and_ignores_the_answer(tmp_path: Path) -> None:
    traces = [t._replace(id=f"{k}") for k, t in enumerate(group(["2"] * 400))]
    one = totals(Random(probability=0.3).prepare(Context.scratch(tmp_path, seed=1)).score(traces))
    again = totals(Random(probability=0.3).prepare(Context.scratch(tmp_path, seed=1)).score(traces))
    other = totals(Random(probability=0.3).prepare(Context.scratch(tmp_path, seed=2)).score(traces))
    assert one == again != other
    assert set(one) == {0.0, 1.0}
    assert abs(np.mean(one) - 0.3) < 0.08


def test_weighted_sum_keeps_parts_names_the_task_and_passes_invalidity_on() -> None:
    reward = Weighted(parts=(Part(reward=Exact()), Part(reward=Format(), weight=0.1, name="shape")))
    said = reward.score(group(["2", ""]))
    assert totals(said) == pytest.approx([1.1, 0.05])
    assert [s[TASK].value for s in said] == [1, 0]
    assert said[1]["shape"].value == 0.5
    broken = trace(None, reply=Message("assistant", "2"), facts={"family": "add", "truth": {}})
    assert not reward.score([broken])[0][TOTAL].valid
