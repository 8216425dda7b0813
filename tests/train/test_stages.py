"""The training stages from end to end on a world of a few hundred tokens: they learn, resume to the same bytes, continue, refuse."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from upslope.chat.artifacts import Chat, Chats, Pair, Pairs
from upslope.chat.messages import Message
from upslope.config import Duration, Input, UsageError
from upslope.machine.context import Context
from upslope.machine.files import digest_path
from upslope.machine.stage import Artifact, Paused
from upslope.model.checkpoint import Checkpoint
from upslope.model.config import Normal, dense
from upslope.optim.config import AdamW, Muon
from upslope.optim.schedule import Constant
from upslope.stages.distill import Distill, Offline, OnPolicy
from upslope.stages.preference import Preference
from upslope.stages.pretrain import Pretrain
from upslope.stages.reward_model import RewardModel
from upslope.stages.sft import Sft
from upslope.tasks.artifacts import Tasks
from upslope.tasks.task import Task
from upslope.tokens.mixture import Mixture
from upslope.tokens.shards import TokenShards
from upslope.tokens.tokenizer import train_bpe
from upslope.train.batch import Batch
from upslope.train.build import of_stream, render, render_pair, teach
from upslope.train.init import Continue, Load, Scratch
from upslope.train.order import examples
from upslope.train.stage import Training

WORDS = ["red", "green", "blue", "black", "white"]
MODEL = dense(32, 2, 2, 1, 16, 48, context=96, init=Normal(std=0.1))
FAST = {"numerics": "fp32", "schedule": Constant(), "save_seconds": 0.0}


class World(NamedTuple):
    inputs: dict[str, Artifact]

    def run(self, stage: Training, folder: Path, seed: int = 0, **more: Artifact) -> tuple[Checkpoint, Context]:
        ctx = Context.scratch(folder, seed, **self.inputs, **more)
        return stage.run(ctx), ctx  # type: ignore[return-value]


class Upstream(NamedTuple):
    vocab_size: int


def say(role: Any, text: str, **options: Any) -> Message:
    return Message(role, text, **options)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    root = tmp_path_factory.mktemp("world")
    texts = [f"the {a} {b} box number {i}" for i, (a, b) in enumerate((a, b) for a in WORDS for b in WORDS)] * 4
    tokenizer = train_bpe(texts, 280, root / "tokenizer")
    shards = TokenShards.write(root / "shards", tokenizer, {"boxes": texts})
    mixture = Mixture.write(root / "mixture", {"boxes": 1.0}, tokens=100_000)
    chats = Chats.write(
        root / "chats",
        [
            Chat(f"c{i}", (say("user", f"say {w} {i % 3}"), say("assistant", f"{w}!", reasoning="hm" if i % 2 else "")))
            for i, w in enumerate(WORDS * 5)
        ],
    )
    pairs = Pairs.write(
        root / "pairs",
        [
            Pair(
                f"p{i}",
                (say("user", f"say {w} {i}"),),
                say("assistant", f"{w}!"),
                say("assistant", "no no no" if i % 2 else "never"),
                "toy",
                "heldout" if i % 4 == 3 else "train",
            )
            for i, w in enumerate(WORDS * 8)
        ],
    )
    tasks = Tasks.write(
        root / "tasks",
        [
            (Task(f"t{i}", "toy", ({"role": "user", "content": f"say {w}"},), (), {"answer": w}, 1.0), "train" if i else "heldout", w)
            for i, w in enumerate(WORDS)
        ],
    )
    inputs = {"tokenizer": tokenizer, "shards": shards, "mix": mixture, "chats": chats, "pairs": pairs, "tasks": tasks}
    base = World(inputs)
    made, _ = base.run(pretrain(), root / "base")
    return World(inputs | {"base": made})


def pretrain(**changes: Any) -> Pretrain:
    fields: dict[str, Any] = {
        "init": Scratch(model=MODEL),
        "tokenizer": Input(stage="tokenizer"),
        "shards": (Input(stage="shards"),),
        "mixture": Input(stage="mix"),
        "length": Duration.of("30st"),
        "optim": Muon(lr=1e-2),
        "rows": 4,
        "row_length": 32,
        **FAST,
    }
    return Pretrain(**(fields | changes))


BASE = Load(checkpoint=Input(stage="base"))


def sft(**changes: Any) -> Sft:
    fields: dict[str, Any] = {
        "init": BASE,
        "chats": (Input(stage="chats"),),
        "length": Duration.of("3ep"),
        "optim": Muon(lr=1e-2, adamw=AdamW(lr=2e-2)),
        "chats_per_step": 8,
        **FAST,
    }
    return Sft(**(fields | changes))


def distill(form: Any, **changes: Any) -> Distill:
    fields: dict[str, Any] = {
        "init": BASE,
        "teacher": Input(stage="teacher"),
        "form": form,
        "length": Duration.of("12st"),
        "optim": AdamW(lr=5e-3),
        **FAST,
    }
    return Distill(**(fields | changes))


ON_POLICY = OnPolicy(tasks=(Input(stage="tasks"),), prompts=4, samples=2, max_new=10)
OFFLINE = Offline(chats=(Input(stage="chats"),), chats_per_step=8)


def preference(**changes: Any) -> Preference:
    fields: dict[str, Any] = {
        "init": BASE,
        "pairs": (Input(stage="pairs"),),
        "length": Duration.of("3ep"),
        "optim": AdamW(lr=2e-3),
        "pairs_per_step": 8,
        **FAST,
    }
    return Preference(**(fields | changes))


def reward_model(**changes: Any) -> RewardModel:
    fields: dict[str, Any] = {
        "init": BASE,
        "pairs": (Input(stage="pairs"),),
        "length": Duration.of("5ep"),
        "optim": AdamW(lr=5e-3),
        "pairs_per_step": 8,
        **FAST,
    }
    return RewardModel(**(fields | changes))


@pytest.fixture(scope="module")
def teacher(world: World, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return world.run(sft(length=Duration.of("12ep")), tmp_path_factory.mktemp("teacher"))[0]


def weights(c: Checkpoint) -> dict[str, torch.Tensor]:
    return {n: p.detach() for n, p in c.model().named_parameters()}


def test_pretraining_learns_and_reports(world: World, tmp_path: Path) -> None:
    made, ctx = world.run(pretrain(), tmp_path)
    assert ctx.facts["steps"] == 30
    assert ctx.facts["tokens"] == 30 * 128
    assert ctx.facts["final_nll"] < 0.75 * np.log(280)
    assert ctx.facts["flops"] == pretrain().cost({"tokenizer": Upstream(vocab_size=made.tokenizer().vocab_size)}).flops > 1e8
    assert pretrain(length=Duration.of("1ep")).cost({}).flops == 0.0
    held = len(world.inputs["shards"].tokens("boxes"))  # type: ignore[attr-defined]
    assert ctx.facts["epochs"]["boxes"] == pytest.approx(30 * 128 / held, abs=0.1)
    assert "nats a token" in ctx.headline
    assert made.config().vocab == made.tokenizer().vocab_size
    assert (made.state / "optimizer.safetensors").is_file()


STAGES: dict[str, Any] = {
    "pretrain": pretrain,
    "sft": sft,
    "distill-on-policy": lambda **c: distill(**{"form": ON_POLICY} | c),
    "distill-offline": lambda **c: distill(OFFLINE, **c),
    "preference": preference,
    "reward_model": reward_model,
}


@pytest.mark.parametrize("name", STAGES)
def test_paused_and_resumed_gives_the_same_bytes(name: str, world: World, teacher: Checkpoint, tmp_path: Path, monkeypatch: Any) -> None:
    stage = STAGES[name](length=Duration.of("6st"))
    made, first = world.run(stage, tmp_path / "whole", teacher=teacher)
    ctx = Context.scratch(tmp_path / "again", 0, **world.inputs, teacher=teacher)
    from upslope.train.trainer import Trainer

    step = Trainer.step

    def stopping(self: Trainer, *args: Any) -> Any:
        ctx.stopping = self.steps >= 2
        return step(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "step", stopping)
        with pytest.raises(Paused):
            stage.run(ctx)
    again, second = world.run(stage, tmp_path / "again", teacher=teacher)
    assert digest_path(made.path) == digest_path(again.path)
    assert first.facts == second.facts
    assert first.headline == second.headline


def test_another_seed_gives_other_weights(world: World, tmp_path: Path) -> None:
    a, b = (world.run(sft(length=Duration.of("2st")), tmp_path / str(s), seed=s)[0] for s in (0, 1))
    assert any(not torch.equal(x, y) for x, y in zip(weights(a).values(), weights(b).values()))


def test_mid_training_loads_takes_longer_rows_and_extends_the_context(world: World, tmp_path: Path) -> None:
    stage = pretrain(init=BASE, tokenizer=None, row_length=128, rows=2, length=Duration.of("4st"))
    made, ctx = world.run(stage, tmp_path)
    assert made.config().context == 128
    assert ctx.facts["tokens"] == 4 * 256


def test_continue_restores_the_optimizer(world: World, tmp_path: Path) -> None:
    """Two segments joined by Continue differ from Load, by the optimizer's state alone."""
    options = {"tokenizer": None, "length": Duration.of("2st")}
    a = world.run(pretrain(init=Continue(checkpoint=Input(stage="base")), **options), tmp_path / "a")[0]
    b = world.run(pretrain(init=BASE, **options), tmp_path / "b")[0]
    assert any(not torch.equal(x, y) for x, y in zip(weights(a).values(), weights(b).values()))
    with pytest.raises(UsageError, match="names differ"):
        world.run(pretrain(init=Continue(checkpoint=Input(stage="base")), optim=AdamW(), **options), tmp_path / "c")


def test_sft_learns_the_replies(world: World, tmp_path: Path) -> None:
    _, ctx = world.run(sft(length=Duration.of("16ep")), tmp_path)
    assert ctx.facts["steps"] == 50
    assert ctx.facts["final_nll"] < 0.5
    assert ctx.facts["left_out_too_long"] == 0
    assert ctx.facts["chats"] == 25


def test_chats_longer_than_the_context_are_counted(world: World, tmp_path: Path) -> None:
    long = Chats.write(tmp_path / "long", [Chat("l", (say("user", "x " * 200), say("assistant", "y")))])
    _, ctx = world.run(sft(chats=(Input(stage="chats"), Input(stage="long")), length=Duration.of("1st")), tmp_path / "run", long=long)
    assert ctx.facts["left_out_too_long"] == 1
    with pytest.raises(UsageError, match="none of the 1 chats"):
        world.run(sft(chats=(Input(stage="long"),), length=Duration.of("1st")), tmp_path / "none", long=long)


@pytest.mark.parametrize(
    ("form", "more"), [(ON_POLICY, {}), (OFFLINE, {}), (OFFLINE, {"top_k": 5}), (OFFLINE, {"beta": 0.0}), (OFFLINE, {"beta": 0.5})]
)
def test_distillation_comes_nearer_to_the_teacher(
    form: Any, more: dict[str, Any], world: World, teacher: Checkpoint, tmp_path: Path
) -> None:
    _, ctx = world.run(distill(form, length=Duration.of("40st"), **more), tmp_path, teacher=teacher)
    assert ctx.facts["divergence"]["last"] < 0.6 * ctx.facts["divergence"]["first"]


def test_distilling_a_model_from_itself_starts_at_zero(world: World, tmp_path: Path) -> None:
    _, ctx = world.run(distill(OFFLINE, teacher=Input(stage="base"), length=Duration.of("1st")), tmp_path)
    assert abs(ctx.facts["final_divergence"]) < 1e-6


def test_a_teacher_with_another_tokenizer_is_refused(world: World, tmp_path: Path) -> None:
    other = train_bpe(["something else entirely"] * 9, 265, tmp_path / "t")
    stranger, _ = World(world.inputs | {"tokenizer": other}).run(
        pretrain(length=Duration.of("1st"), shards=(Input(stage="foreign"),)),
        tmp_path / "stranger",
        foreign=TokenShards.write(tmp_path / "s", other, {"boxes": ["something else"] * 40}),
    )
    with pytest.raises(UsageError, match="different tokenizers"):
        world.run(distill(OFFLINE), tmp_path / "run", teacher=stranger)


def test_preference_learns_the_pairs(world: World, tmp_path: Path) -> None:
    _, ctx = world.run(preference(), tmp_path)
    held = ctx.facts["heldout_accuracy"]
    assert held["n"] == 10
    assert held["value"] >= 0.9
    assert held["low"] < held["value"] <= held["high"]
    assert ctx.facts["final_margin"] > 0


def test_the_reward_model_scores_held_out_pairs_and_keeps_its_head(world: World, tmp_path: Path) -> None:
    made, ctx = world.run(reward_model(), tmp_path)
    assert ctx.facts["heldout_accuracy"]["value"] >= 0.9
    assert ctx.facts["heldout_longer_is_better"]["n"] == 10
    head, model = made.reward_head().requires_grad_(False), made.model().requires_grad_(False)
    from upslope.chat.render import ChatML

    pair = world.inputs["pairs"].read("heldout")[0]  # type: ignore[attr-defined]
    good, bad = render_pair(ChatML(made.tokenizer()), pair)
    assert float(head(model(good.ids))[-1]) > float(head(model(bad.ids))[-1])


KNOBS: list[tuple[str, dict[str, Any]]] = [
    ("pretrain", {"z_loss": 0.1}),
    ("pretrain", {"rows": 2}),
    ("pretrain", {"row_length": 16}),
    ("pretrain", {"clip": 1e-3}),
    ("pretrain", {"numerics": "bf16"}),
    ("pretrain", {"schedule": Constant(warmup=2)}),
    ("sft", {"z_loss": 0.1}),
    ("sft", {"chats_per_step": 4}),
    ("distill-offline", {"beta": 0.5}),
    ("distill-offline", {"top_k": 3}),
    ("distill-on-policy", {"form": ON_POLICY.replace(samples=1)}),
    ("distill-on-policy", {"form": ON_POLICY.replace(temperature=0.3)}),
    ("distill-on-policy", {"form": ON_POLICY.replace(max_new=3)}),
    ("distill-on-policy", {"form": ON_POLICY.replace(prompts=2)}),
    ("preference", {"beta": 5.0}),
    ("preference", {"normalise": True}),
    ("preference", {"nll": 1.0}),
    ("preference", {"pairs_per_step": 4}),
    ("reward_model", {"center": 1.0}),
    ("reward_model", {"optim": AdamW(lr=1e-2)}),
]


@pytest.mark.parametrize(("name", "change"), KNOBS)
def test_every_knob_changes_the_weights(name: str, change: dict[str, Any], world: World, teacher: Checkpoint, tmp_path: Path) -> None:
    two = {"length": Duration.of("2st")}
    plain = STAGES[name](**two)
    a = world.run(plain, tmp_path / "a", teacher=teacher)[0]
    b = world.run(plain.replace(**change), tmp_path / "b", teacher=teacher)[0]
    assert any(not torch.equal(x, y) for x, y in zip(weights(a).values(), weights(b).values()))


def test_exec_fields_change_nothing_beyond_rounding(world: World, tmp_path: Path) -> None:
    a = world.run(sft(length=Duration.of("2st")), tmp_path / "a")[0]
    b = world.run(sft(length=Duration.of("2st"), micro_tokens=40, save_seconds=1e9, log_every=1), tmp_path / "b")[0]
    for x, y in zip(weights(a).values(), weights(b).values()):
        torch.testing.assert_close(x, y, rtol=0, atol=2e-3)


def test_configs_refuse_contradictions() -> None:
    with pytest.raises(ValidationError, match="tokenizer"):
        pretrain(tokenizer=None)
    with pytest.raises(ValidationError, match="tokenizer"):
        pretrain(init=BASE)


# ── builders ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_stream_batches_imitate_everything_but_first_tokens(world: World) -> None:
    from upslope.tokens.stream import Stream

    stream = Stream([world.inputs["shards"]], world.inputs["mix"], 32, seed=0, total=40)  # type: ignore[list-item,arg-type]
    b = of_stream(stream, 12, 4)
    b.check()
    assert len(b) == 128
    assert b.imitate is not None
    assert torch.equal(b.imitate, (b.pos > 0).float())
    assert set(b.origin.tolist()) == {12, 13, 14, 15}
    samples = [stream.sample(k) for k in range(12, 16)]
    assert b.ids.tolist() == [int(i) for s in samples for i in s.ids]
    assert b.segments == sum(len(s.pieces) for s in samples)
    for s in range(b.segments):
        assert b.pos[b.seg == s].tolist() == list(range(int((b.seg == s).sum())))


def test_rendered_chats_train_the_assistants_words_and_end_token(world: World) -> None:
    from upslope.chat.render import ChatML

    t = world.inputs["base"].tokenizer()  # type: ignore[attr-defined]
    chat = Chat("x", (say("user", "say red"), say("assistant", "wrong", train=False), say("user", "again"), say("assistant", "red!")))
    r = render(ChatML(t), chat)
    assert t.decode(r.ids[r.weight > 0].tolist()) == "red!<|im_end|>"
    with pytest.raises(UsageError, match="nothing in it is trained"):
        render(ChatML(t), Chat("y", (say("user", "hello"), say("assistant", "no", train=False))))
    good, bad = render_pair(ChatML(t), Pair("p", chat.messages[:3], say("assistant", "red!"), say("assistant", "blue!"), "toy"))
    assert t.decode(good.ids[good.weight > 0].tolist()) == "red!<|im_end|>"
    assert t.decode(bad.ids[bad.weight > 0].tolist()) == "blue!<|im_end|>"


def test_teach_gives_the_teachers_distribution(world: World) -> None:
    m = world.inputs["base"].model()  # type: ignore[attr-defined]
    b = Batch.of([[5, 6, 7, 8], [9, 10, 11]], imitate=torch.tensor([0.0, 1, 0, 2, 0, 0, 1]))
    whole, top = teach(b, m, m.logits, 0), teach(b, m, m.logits, 4)
    assert whole.distil is not None
    assert top.distil is not None
    assert whole.imitate is None
    logp = torch.log_softmax(m.logits(m(b.ids, b.seg, b.pos)), -1)
    for t in (1, 3, 6):
        torch.testing.assert_close(whole.distil.logprobs[t], logp[t - 1], rtol=0, atol=1e-5)
        best = logp[t - 1].topk(4)
        assert top.distil.ids[t].tolist() == best.indices.tolist()
        assert float(top.distil.rest[t].exp()) == pytest.approx(1 - float(best.values.detach().exp().sum()), abs=1e-5)
    assert float(whole.distil.logprobs[2].abs().sum()) == 0.0


def test_the_order_of_examples_is_whole_epochs_and_a_function_of_seed_and_step() -> None:
    seen = [i for step in range(6) for i in examples(10, 5, step, seed=3)]
    assert sorted(seen[:10]) == sorted(seen[10:20]) == list(range(10))
    assert seen[:10] != seen[10:20]
    assert examples(10, 5, 4, seed=3) == seen[20:25]
    assert examples(10, 5, 4, seed=4) != seen[20:25]
    with pytest.raises(UsageError, match="no examples"):
        examples(0, 5, 0, seed=3)
