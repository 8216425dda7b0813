"""What every environment must do: messages only, an end, independent episodes, the same for the same seed."""

from __future__ import annotations

from typing import cast

import pytest

from upslope.chat.messages import Message
from upslope.config import kinds
from upslope.rl.protocol import Done, Environment, Turn
from upslope.tasks.task import Task

ENVIRONMENTS = sorted(kinds(Environment))
TASK = Task("t", "add", ({"role": "system", "content": "be brief"}, {"role": "user", "content": "1 + 1"}), (), {"answer": "2"}, 1.0)
TURNS = 50


def play(environment: Environment, seed: int, reply: str = "2") -> list[Turn]:
    episode = environment.episode()
    turns = [episode.reset(TASK, seed)]
    while turns[-1].done is None and len(turns) < TURNS:
        turns.append(episode.step(Message("assistant", reply)))
    episode.close()
    return turns


@pytest.fixture(params=ENVIRONMENTS)
def environment(request: pytest.FixtureRequest) -> Environment:
    return cast(Environment, kinds(Environment)[request.param]())


def test_it_speaks_messages_and_comes_to_an_end(environment: Environment) -> None:
    turns = play(environment, 0)
    assert isinstance(turns[-1].done, Done)
    for turn in turns:
        assert all(isinstance(m, Message) for m in turn.messages)
    assert turns[0].messages[-1].role != "assistant"


def test_it_is_a_function_of_task_seed_and_replies(environment: Environment) -> None:
    assert play(environment, 3) == play(environment, 3)


def test_episodes_share_nothing(environment: Environment) -> None:
    first, second = environment.episode(), environment.episode()
    opened = first.reset(TASK, 0)
    second.reset(TASK, 0)
    second.step(Message("assistant", "x"))
    second.close()
    assert first.step(Message("assistant", "2")) == play(environment, 0)[1]
    assert opened == play(environment, 0)[0]


def test_the_rewards_learn_family_level_and_truth(environment: Environment) -> None:
    facts = play(environment, 0)[0].facts
    assert isinstance(facts, dict)
    assert (facts["family"], facts["level"], facts["truth"]) == ("add", 1.0, {"answer": "2"})
