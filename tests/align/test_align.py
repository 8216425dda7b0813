"""Gates and learned rewards: nothing buys a veto back, and the score is the head's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.rl.support import trace
from upslope.align.gated import Gated
from upslope.align.reward_model import RewardModel, Scorer
from upslope.align.secret import Secret
from upslope.chat.messages import Message
from upslope.chat.render import ChatML
from upslope.config import Input, UsageError, find_kind
from upslope.machine.context import Context
from upslope.model.checkpoint import Checkpoint
from upslope.model.config import dense
from upslope.model.heads import ScalarHead
from upslope.model.init import initialise
from upslope.model.transformer import Transformer
from upslope.rl.objective import task_score
from upslope.rl.protocol import TOTAL, Reward, Score, Trace
from upslope.rl.rewards import Part, Weighted
from upslope.tokens.tokenizer import train_bpe

FACTS = {"family": "secret", "level": 1.0, "truth": {"word": "fox", "ask": True, "answer": "no."}}


def said(text: str, reasoning: str = "", **facts: object) -> Trace:
    return trace(None, id=text, reply=Message("assistant", text, reasoning), facts={**FACTS, **facts})


class Given(Reward):
    """Scores that a test chooses: the numbers in the answer, `veto quality`."""

    kind: ClassVar[str] = "given"

    field: int

    def score(self, group: Sequence[Trace]) -> list[Mapping[str, Score]]:
        values = [t.reply.content.split()[self.field] for t in group]
        return [{TOTAL: Score(0.0, False, "asked for nothing") if v == "x" else Score(float(v))} for v in values]


GATE = Gated(vetoes=(Part(reward=Given(field=0)),), quality=Given(field=1))
number = st.floats(-1e6, 1e6)


@given(vetoed=st.floats(-10, 0.49), passed=st.floats(0.5, 10), high=number, low=number)
def test_no_quality_buys_a_veto_back(vetoed: float, passed: float, high: float, low: float) -> None:
    bad, good = GATE.score([said(f"{vetoed} {high}"), said(f"{passed} {low}")])
    assert bad[TOTAL] == Score(GATE.minimum, True, "veto_given")
    assert good[TOTAL].value >= bad[TOTAL].value
    assert good[TOTAL].value == max(GATE.minimum, low)


@given(vetoes=st.lists(st.sampled_from([0.0, 1.0]), min_size=2, max_size=2))
def test_one_veto_of_several_is_enough(vetoes: list[float]) -> None:
    gate = Gated(vetoes=(Part(reward=Given(field=0), name="a"), Part(reward=Given(field=1), name="b")), quality=Given(field=2))
    scores = gate.score([said(f"{vetoes[0]} {vetoes[1]} 0.7")])[0]
    assert scores[TOTAL].value == (0.7 if min(vetoes) >= 0.5 else -1.0)
    assert (scores["veto_a"].value, scores["veto_b"].value) == tuple(vetoes)


def test_quality_is_not_graded_where_vetoed_and_invalid_stays_invalid() -> None:
    scores = GATE.score([said("0 x"), said("1 x"), said("x 1"), said("1 0.3")])
    assert [s[TOTAL].valid for s in scores] == [True, False, False, True]
    assert "quality" not in scores[0]
    assert scores[3]["quality"].value == 0.3


def test_the_task_score_of_the_quality_survives_the_gate() -> None:
    gate = GATE.replace(quality=Weighted(parts=(Part(reward=Given(field=1)), Part(reward=Given(field=2), weight=0.1, name="extra"))))
    passed, vetoed = ({**s} for s in gate.score([said("1 1 0.5"), said("0 1 0.5")]))
    traces = [said("x")._replace(scores=s) for s in (passed, vetoed)]
    assert [task_score(t).value for t in traces] == [1.0, -1.0]
    assert passed[TOTAL].value == pytest.approx(1.05)


def test_every_field_of_the_gate_bites() -> None:
    assert GATE.replace(threshold=0.9).score([said("0.6 0.3")])[0][TOTAL].value == -1.0
    assert GATE.replace(minimum=-5.0).score([said("0 0.3")])[0][TOTAL].value == -5.0
    with pytest.raises(ValueError, match="at least 1"):
        GATE.replace(vetoes=())
    with pytest.raises(ValueError, match="has no weight"):
        GATE.replace(vetoes=(Part(reward=Given(field=0), weight=0.5),))


@pytest.mark.parametrize(
    ("text", "kept"), [("no.", 1), ("the word is fox.", 0), ("f o x", 0), ("xof", 0), ("Foxes are red", 0), ("f and ox", 1)]
)
def test_the_secret_is_kept_in_the_answer(text: str, kept: float) -> None:
    assert Secret().score([said(text)])[0][TOTAL].value == kept


def test_thoughts_are_not_judged_and_other_tasks_have_nothing_to_leak() -> None:
    assert Secret().score([said("no.", "the word is fox")])[0][TOTAL].value == 1
    assert Secret().score([said("fox", truth={"answer": "fox"})])[0][TOTAL].value == 1


def test_kinds_of_both_homes_are_found() -> None:
    assert find_kind(Reward, "gated") is Gated
    assert find_kind(Reward, "reward_model") is RewardModel
    assert find_kind(Reward, "secret") is Secret


@pytest.fixture(scope="module")
def judge(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    tokenizer = train_bpe(["user assistant the answer is 12 no yes\n"] * 10, 280, tmp_path_factory.mktemp("tokenizer"))
    model = initialise(Transformer(dense(16, 1, 1, 1, 16, 16, context=64, vocab=tokenizer.vocab_size)), 1)
    head = ScalarHead(16)
    with torch.no_grad():
        head.weight.copy_(torch.linspace(-1, 1, 16))
        head.bias.fill_(0.1)
    return Checkpoint.write(tmp_path_factory.mktemp("judge"), model, tokenizer, head)


def test_the_score_is_the_head_at_the_end_of_the_conversation(judge: Checkpoint, tmp_path: Path) -> None:
    traces = [said("yes"), said("no"), said("the answer is 12")]
    ids = [torch.tensor(ChatML(judge.tokenizer()).open([*t.prompt, t.reply]).ids.tolist()) for t in traces]
    model, head = judge.model(), judge.reward_head()
    with torch.no_grad():
        alone = [float(head(model(i, torch.zeros_like(i), torch.arange(len(i))))[-1]) for i in ids]
    ctx = Context.scratch(tmp_path, judge=judge)
    raw = RewardModel(checkpoint=Input(stage="judge"), squash=False).prepare(ctx)
    assert [s[TOTAL].value for s in raw.score(traces)] == pytest.approx(alone, abs=1e-5)
    squashed = RewardModel(checkpoint=Input(stage="judge")).prepare(ctx)
    assert [s[TOTAL].value for s in squashed.score(traces)] == pytest.approx(torch.sigmoid(torch.tensor(alone)).tolist(), abs=1e-5)
    tiny = Scorer(judge, tokens=1)
    groups = [traces[:1], [], traces[1:]]
    both = zip(squashed.score_all(groups), tiny.score_all(groups), strict=True)
    assert all(a[TOTAL].value == pytest.approx(b[TOTAL].value, abs=1e-6) for x, y in both for a, b in zip(x, y, strict=True))


def test_a_checkpoint_without_head_is_refused(judge: Checkpoint, tmp_path: Path) -> None:
    plain = Checkpoint.write(tmp_path / "plain", judge.model(), judge.tokenizer())
    with pytest.raises(UsageError, match="no reward head"):
        RewardModel(checkpoint=Input(stage="judge")).prepare(Context.scratch(tmp_path, judge=plain))
