"""Adapters in the training stages: only they move, the checkpoint is the merged model, and every kill ends with the same bits."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.model.test_adapters import EXPERTS, IDS, SEG, error, logits, made
from tests.model.test_adapters import moved as shifted
from tests.rl.conftest import checkpoint, problems, tasks, tokenizer  # noqa: F401
from tests.rl.test_stages import context, stage
from tests.train.support import CONFIG, batch, model, only, scalar
from tests.train.test_stages import BASE, STAGES, World, preference, pretrain, sft, weights, world  # noqa: F401
from upslope.config import Duration, Input, UsageError
from upslope.machine.context import Context
from upslope.machine.events import Events, read
from upslope.machine.files import digest_path, read_json
from upslope.machine.stage import Paused
from upslope.model.adapter_base import HeldMatrix
from upslope.model.adapter_config import NF4, Bf16, DoRA, Int4, Int8, LoRA
from upslope.model.adapter_files import load_adapter
from upslope.model.adapters import attach, folded, kept, merge, plain, slots
from upslope.model.checkpoint import Checkpoint
from upslope.model.config import MTP, BiasBalance
from upslope.model.init import initialise
from upslope.model.transformer import Transformer
from upslope.model.weights import copy_into, family_for, live, tensors
from upslope.optim.config import AdamW, Muon, QKClip
from upslope.optim.roles import decayed, role
from upslope.optim.schedule import WSD
from upslope.precision.config import MxFp8
from upslope.rl.climb import Climb
from upslope.rl.kl import KL
from upslope.rl.objective import Objective
from upslope.tasks.artifacts import Tasks
from upslope.train.adapting import AdapterTrainer, Base
from upslope.train.batch import Batch
from upslope.train.fit import fit
from upslope.train.hooks import Clipping, Emulation
from upslope.train.init import Continue
from upslope.train.losses import Imitate
from upslope.train.ranks import Alone
from upslope.train.trainer import Trainer

STEPS = 8
SOME = LoRA(rank=3, alpha=12)
ADAPTERS: dict[str, Any] = {
    "lora": SOME,
    "dora": DoRA(rank=3, alpha=12),
    "nf4": LoRA(rank=3, alpha=12, base=NF4()),
    "dora-int8": DoRA(rank=3, alpha=12, base=Int8()),
}


def data(step: int) -> Batch:
    return only(batch((4, 6, 5, 3), seed=step, dtype=torch.float32), "imitate")


def trainer(adapter: Any, optim: AdamW | Muon | None = None, seed: int = 0, **options: Any) -> AdapterTrainer:
    m = model(torch.float32)
    attach(m, adapter, seed)
    return AdapterTrainer(m, optim or AdamW(lr=1e-2), **options)


def run(folder: Path, kind: str = "lora", batches: Callable[[int], Batch] = data) -> dict[str, bytes]:
    t = trainer(ADAPTERS[kind], Muon(lr=5e-3) if kind == "lora" else AdamW(lr=5e-3), scalar=scalar(torch.float32))
    fit(t, batches, Imitate(), WSD(warmup=2), STEPS, Context.scratch(folder), save_seconds=0.0)
    whole = dict(t.model.state_dict()) | t.state()
    return {n: p.detach().numpy().tobytes() for n, p in whole.items()}


class Crash(Exception):
    pass


def crashing(step: int) -> Batch:
    if step == 5:
        raise Crash
    return data(step)


@pytest.mark.parametrize("kind", ADAPTERS)
def test_interrupted_and_again_ends_with_the_same_bits(kind: str, tmp_path: Path) -> None:
    whole = run(tmp_path / "whole", kind)
    with pytest.raises(Crash):
        run(tmp_path / "again", kind, crashing)
    assert run(tmp_path / "again", kind) == whole


def test_kill_9_and_again_ends_with_the_same_bits(tmp_path: Path) -> None:
    kind = "dora-int8"
    whole = run(tmp_path / "whole", kind)
    code = (
        "import os, signal, sys\nfrom pathlib import Path\nfrom tests.train.test_adapter_stages import data, run\n"
        f"run(Path(sys.argv[1]), {kind!r}, lambda k: os.kill(os.getpid(), signal.SIGKILL) if k == 5 else data(k))"
    )
    root = Path(__file__).parents[2]
    again = tmp_path / "again"
    done = subprocess.run([sys.executable, "-c", code, str(again)], cwd=root, env=os.environ | {"PYTHONPATH": str(root)}, check=False)
    assert done.returncode == -signal.SIGKILL and list((again / "work").glob("step-*"))
    assert run(again, kind) == whole


@pytest.mark.parametrize("kind", ADAPTERS)
@pytest.mark.parametrize("optim", [AdamW(lr=1e-2), Muon(lr=1e-2)], ids=lambda o: o.kind)
def test_only_adapters_move_and_a_saved_state_holds_them_and_the_optimizer(kind: str, optim: AdamW | Muon) -> None:
    t = trainer(ADAPTERS[kind], optim)
    before = {n: v.clone() for n, v in t.model.state_dict().items()}
    for k in range(3):
        t.step(data(k), Imitate(), 1e-2)
    moved = {n for n, v in t.model.state_dict().items() if not torch.equal(v, before[n])}
    assert moved == set(kept(t.model)) == {n for n in before if n.rpartition(".")[2] in ("lora_a", "lora_b", "magnitude")}
    assert {n for n in t.state() if n.startswith("model.")} == {f"model.{n}" for n in moved}
    sizes = sum(p.numel() for n, p in t.state().items() if not n.startswith("trainer."))
    assert sizes <= 3 * sum(p.numel() for p in kept(t.model).values()) + 8
    other = trainer(ADAPTERS[kind], optim, seed=9)
    other.load({n: v.clone() for n, v in t.state().items()})
    assert all(torch.equal(a, b) for a, b in zip(other.model.state_dict().values(), t.model.state_dict().values(), strict=True))
    assert other.step(data(3), Imitate(), 1e-2) == t.step(data(3), Imitate(), 1e-2)
    with pytest.raises(UsageError, match="of other adapters"):
        trainer(LoRA(rank=3, targets=("*.q",))).load(t.state())


@pytest.mark.parametrize("shape", ["dense", "mla", "moe", "biased", "tied"])
@pytest.mark.parametrize("kind", ADAPTERS)
def test_weights_on_their_way_to_an_engine_are_the_merged_model(shape: str, kind: str) -> None:
    m = made(shape)
    attach(m, ADAPTERS[kind], 1)
    learnt = logits(shifted(m))
    engine = copy_into(made(shape), tensors(live(m)), family_for(m.config))
    assert error(logits(engine), learnt) < 1e-10
    assert error(logits(plain(m)), learnt) < 1e-10
    assert torch.equal(logits(m), learnt)  # neither touched it
    assert all(torch.equal(engine.tensors()[n], t) for n, t in merge(m).tensors().items())


@pytest.mark.parametrize("base", [Bf16(), Int8(), Int4(), NF4()], ids=lambda b: b.kind)
def test_what_is_merged_is_what_was_trained_not_the_adapters_on_the_base_before_rounding(base: Any) -> None:
    m, exact = made(), made()
    attach(m, LoRA(rank=3, base=base), 0)
    attach(exact, LoRA(rank=3), 0)
    learnt = logits(shifted(m))
    with torch.no_grad():
        for n, p in kept(exact).items():
            p.copy_(kept(m)[n])
    name = "blocks.0.mixer.q.weight"
    slot = slots(m)[name][1]
    assert slot.lora_a is not None and slot.lora_b is not None
    wanted = HeldMatrix(made().tensors()[name], base)() + slot.scale * slot.lora_b @ slot.lora_a
    assert error(folded(m)[name], wanted) < 1e-12
    assert error(logits(merge(m)), learnt) < 1e-10
    assert error(logits(exact), learnt) > 1e-4  # the same adapters on the base as it was: another function


# ── stages ────────────────────────────────────────────────────────────────────────────────────────────────────────


NAMES = ["pretrain", "sft", "distill-on-policy", "distill-offline", "preference", "reward_model"]


def staged(name: str, **fields: Any) -> Any:
    loaded = {"init": BASE, "tokenizer": None} if name == "pretrain" else {}
    return STAGES[name](**{"length": Duration.of("3st"), "optim": AdamW(lr=2e-2), "adapter": SOME, **loaded, **fields})


def base_of(w: World) -> Checkpoint:
    found = w.inputs["base"]
    assert isinstance(found, Checkpoint)
    return found


@torch.no_grad()
def said(m: Transformer) -> Tensor:
    return m.logits(m(IDS, SEG))


@pytest.fixture(scope="module")
def teacher(world: World, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:  # noqa: F811
    return world.run(sft(length=Duration.of("6st")), tmp_path_factory.mktemp("teacher"))[0]


@pytest.mark.parametrize("name", NAMES)
def test_a_stage_writes_the_merged_model_and_a_folder_that_gives_it_again(
    name: str,
    world: World,  # noqa: F811
    teacher: Checkpoint,
    tmp_path: Path,
) -> None:
    done, ctx = world.run(staged(name), tmp_path, teacher=teacher)
    base, trained = base_of(world).model(), done.model()
    before = {n: p.detach().clone() for n, p in base.named_parameters()}
    changed = {n for n, p in weights(done).items() if not torch.equal(p, before[n])}
    assert changed == {n for n, p in before.items() if n.startswith("blocks.") and p.ndim == 2}
    assert ctx.facts["parameters"] < sum(p.numel() for p in before.values()) / 2
    assert not done.state.exists()
    load_adapter(base, done.path / "adapter")
    assert error(said(base), said(trained)) < 1e-6 < error(said(base_of(world).model()), said(trained))
    assert "model.layers.0.self_attn.q_proj" in read_json(done.path / "adapter" / "adapter_config.json")["target_modules"]
    if name == "reward_model":
        assert float(done.reward_head().weight.detach().abs().max()) > 0


@pytest.mark.parametrize("name", ["distill-on-policy", "preference", "reward_model"])
def test_a_stage_paused_and_resumed_gives_the_same_bytes(
    name: str,
    world: World,  # noqa: F811
    teacher: Checkpoint,
    tmp_path: Path,
    monkeypatch: Any,
) -> None:
    stage = staged(name, adapter=DoRA(rank=2, base=NF4()))
    whole, first_ = world.run(stage, tmp_path / "whole", teacher=teacher)
    ctx = Context.scratch(tmp_path / "again", 0, **world.inputs, teacher=teacher)
    step = Trainer.step

    def stopping(self: Trainer, *args: Any, **options: Any) -> Any:
        ctx.stopping = self.steps >= 1
        return step(self, *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "step", stopping)
        with pytest.raises(Paused):
            stage.run(ctx)
    again, second = world.run(stage, tmp_path / "again", teacher=teacher)
    assert digest_path(whole.path) == digest_path(again.path)
    assert first_.facts == second.facts


KNOBS: list[Any] = [
    LoRA(rank=2, alpha=12),
    LoRA(rank=3, alpha=6),
    LoRA(rank=3, alpha=12, targets=("*.mixer.*",)),
    LoRA(rank=3, alpha=12, skip=("*.mixer.q",)),
    LoRA(rank=3, alpha=12, scaling="sqrt_rank"),
    LoRA(rank=3, alpha=12, draw="normal"),
    DoRA(rank=3, alpha=12),
    LoRA(rank=3, alpha=12, base=Bf16()),
    LoRA(rank=3, alpha=12, base=Int8()),
    LoRA(rank=3, alpha=12, base=Int4()),
    LoRA(rank=3, alpha=12, base=NF4()),
    LoRA(rank=3, alpha=12, base=NF4(), held=("*.ffn.*",)),
    None,
]


def test_every_knob_of_the_adapter_changes_the_checkpoint(world: World, tmp_path: Path) -> None:  # noqa: F811
    found = [
        digest_path(world.run(sft(adapter=a, length=Duration.of("1st")), tmp_path / str(i))[0].weights / "model.safetensors")
        for i, a in enumerate([SOME, *KNOBS])
    ]
    assert len(set(found)) == len(found)


def test_an_average_of_adapters_is_merged(world: World, tmp_path: Path) -> None:  # noqa: F811
    found = []
    for ema in (None, 0.5):
        done, _ = world.run(sft(adapter=SOME, ema=ema, length=Duration.of("3st")), tmp_path / str(ema))
        again = base_of(world).model()
        load_adapter(again, done.path / "adapter")
        found.append(said(done.model()))
        assert error(said(again), found[-1]) < 1e-6
    assert error(found[1], found[0]) > 1e-3


def test_the_reference_of_dpo_is_the_base_whatever_the_adapters_are(world: World, tmp_path: Path) -> None:  # noqa: F811
    """A first step at learning rate 0 has a margin of 0, and held-out log-ratios of nothing learnt are ties."""
    for name, adapter in (("lora", SOME), ("dora", DoRA(rank=2)), ("nf4", LoRA(rank=2, base=NF4()))):
        stage = preference(adapter=adapter, optim=AdamW(lr=1e-30, weight_decay=0.0), length=Duration.of("1st"))
        _, ctx = world.run(stage, tmp_path / name)
        assert abs(ctx.facts["final_margin"]) < 1e-5


def test_a_reference_without_a_second_model_is_the_base_after_training_too() -> None:
    t = trainer(SOME)
    start = Trainer(model(torch.float32), AdamW()).forward(data(0), frozenset({"logprob"})).logprob
    for k in range(3):
        t.step(data(k), Imitate(), 1e-2)
    found = Base(t).forward(data(0), frozenset({"logprob"})).logprob
    now = t.forward(data(0), frozenset({"logprob"})).logprob
    assert start is not None and found is not None and now is not None
    assert torch.equal(found, start) and not torch.allclose(now, start, atol=1e-3)


def test_contradictions_are_refused(world: World, tmp_path: Path) -> None:  # noqa: F811
    def refused(stage: Any, match: str) -> None:
        with pytest.raises(UsageError, match=match):
            world.run(stage, tmp_path / match.split()[0].strip("'.^"))

    refused(sft(adapter=SOME, only=("*.q.weight",)), "only = ")
    refused(sft(adapter=SOME, init=Continue(checkpoint=Input(stage="base"))), "init kind 'continue'")
    refused(pretrain(adapter=SOME), "scratch")
    refused(sft(adapter=SOME, optim=Muon(split="heads")), "have no heads")
    grown = base_of(world).config()
    refused(sft(adapter=SOME, init=BASE.replace(model=grown.replace(mtp=MTP(depth=1, block=next(iter(grown.blocks)))))), "init.model adds")
    with pytest.raises(UsageError, match="no adapters"):
        AdapterTrainer(model(), AdamW())


def test_what_no_folder_can_hold_is_in_the_merged_weights_and_alarmed(world: World, tmp_path: Path) -> None:  # noqa: F811
    ctx = Context.scratch(tmp_path, 0, **world.inputs)
    ctx.events = Events(tmp_path / "log" / "events.jsonl")
    stage = sft(adapter=LoRA(rank=2, targets=("embed",), tied="adapt"), length=Duration.of("2st"))
    done = stage.run(ctx)
    assert [e["first"] for e in read(tmp_path / "log") if e["kind"] == "alarm"] == ["embed.weight"]
    assert not (done.path / "adapter").exists()
    assert not torch.equal(weights(done)["embed.weight"], dict(base_of(world).model().named_parameters())["embed.weight"])


# ── experts, hooks, ranks ─────────────────────────────────────────────────────────────────────────────────────────


def test_selection_biases_of_a_frozen_router_stay_and_magnitudes_of_stacks_are_vectors() -> None:
    ffn = EXPERTS.replace(shared=None, router=EXPERTS.router.replace(score="sigmoid"), balance=(BiasBalance(rate=0.1),))
    layer = CONFIG.blocks["dense"].replace(ffn=ffn)
    c = CONFIG.replace(blocks={"dense": layer})
    for adapter in (None, DoRA(rank=2)):
        m = initialise(Transformer(c), 0)
        if adapter is not None:
            attach(m, adapter, 0)
        before = {n: t.clone() for n, t in m.state_dict().items()}
        t = Trainer(m, Muon()) if adapter is None else AdapterTrainer(m, Muon())
        t.step(data(0), Imitate(), 1e-2)
        moved = {n for n, v in m.state_dict().items() if not torch.equal(v, before[n])}
        assert any(n.endswith("select_bias") for n in moved) == (adapter is None)
    found = {n: p for n, p in m.named_parameters() if n.endswith("experts.up.magnitude")}
    assert found and all(p.ndim == 2 and role(n, p) == "vector" and not decayed(n, p) for n, p in found.items())
    assert all(role(n, p) == "matrix" for n, p in m.named_parameters() if ".lora_" in n)


def test_what_reads_or_writes_whole_weights_is_refused_with_adapters() -> None:
    bare = CONFIG.blocks["dense"]
    bare = bare.replace(mixer=bare.mixer.replace(qk_norm=None))
    for hook in (lambda m: Clipping(m, QKClip()), lambda m: Emulation(m, MxFp8())):
        m = initialise(Transformer(CONFIG.replace(blocks={"dense": bare})), 0)
        attach(m, LoRA(rank=2, targets=("*.q",)), 0)
        with pytest.raises(UsageError, match="one of them at a time"):
            AdapterTrainer(m, AdamW(), hooks=(hook(m),))

    class Two(Alone):
        world = 2

    m = model(torch.float32)
    attach(m, SOME, 0)
    with pytest.raises(UsageError, match="adapters on 2 ranks"):
        AdapterTrainer(m, AdamW(), ranks=Two())


# ── reinforcement learning ────────────────────────────────────────────────────────────────────────────────────────


def climb(adapter: Any, folder: Path, start: Checkpoint, tasks: Tasks, **fields: Any) -> tuple[Checkpoint, Context]:  # noqa: F811
    ctx = context(folder, start, tasks)
    return stage(adapter=adapter, optim=AdamW(lr=1e-2, weight_decay=0.0), **fields).run(ctx), ctx


@pytest.mark.parametrize("kind", ["lora", "nf4"])
def test_rl_samples_from_the_merged_policy_and_writes_it(kind: str, checkpoint: Checkpoint, tasks: Tasks, tmp_path: Path) -> None:  # noqa: F811
    """Engine and trainer agree about every sampled token, at every step: the engine has the folded weights."""
    done, ctx = climb(ADAPTERS[kind], tmp_path, checkpoint, tasks)
    mismatch = ctx.facts["ends"]["mismatch"]
    assert max(abs(m) for m in mismatch) < 1e-5
    trained, before = dict(done.model().named_parameters()), dict(checkpoint.model().named_parameters())
    changed = {n for n, p in trained.items() if not torch.equal(p, before[n])}
    assert changed == {n for n, p in before.items() if n.startswith("blocks.") and p.ndim == 2}
    assert (done.path / "adapter" / "adapter_model.safetensors").is_file()


def test_rl_killed_and_resumed_gives_the_same_bytes(checkpoint: Checkpoint, tasks: Tasks, tmp_path: Path, monkeypatch: Any) -> None:  # noqa: F811
    fields: dict[str, Any] = {"save_seconds": 0.0, "objective": Objective(drop_constant=False, kl=KL(coefficient=0.5))}
    whole, _ = climb(LoRA(rank=2, base=Int8()), tmp_path / "whole", checkpoint, tasks, **fields)
    real = Climb.step

    def fragile(self: Climb, k: int, c: Context) -> None:
        if k == 2:
            raise InterruptedError
        real(self, k, c)

    with monkeypatch.context() as patch:
        patch.setattr(Climb, "step", fragile)
        with pytest.raises(InterruptedError):
            climb(LoRA(rank=2, base=Int8()), tmp_path / "again", checkpoint, tasks, **fields)
    again, _ = climb(LoRA(rank=2, base=Int8()), tmp_path / "again", checkpoint, tasks, **fields)
    assert digest_path(again.path) == digest_path(whole.path)


def test_the_reference_of_rl_is_the_base_without_adapters(checkpoint: Checkpoint, tasks: Tasks, tmp_path: Path, monkeypatch: Any) -> None:  # noqa: F811
    """Its log-probabilities are those of a second, untouched model, at every step."""
    found: list[float] = []
    real = Base.forward

    def watched(self: Base, b: Batch, wants: Any) -> Any:
        out = real(self, b, wants)
        other = Trainer(checkpoint.model(), AdamW()).forward(b, wants)
        assert out.logprob is not None and other.logprob is not None
        assert torch.equal(out.logprob, other.logprob)
        found.append(float((self.trainer.forward(b, wants).logprob - out.logprob).abs().max()))  # type: ignore[operator]
        return out

    monkeypatch.setattr(Base, "forward", watched)
    climb(SOME, tmp_path, checkpoint, tasks, objective=Objective(drop_constant=False, kl=KL(coefficient=0.5)))
    assert len(found) == 3 and found[0] == 0.0 and found[-1] > 1e-3
