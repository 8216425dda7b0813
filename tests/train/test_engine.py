"""What the loop does besides stepping: spikes, damage, memory, stop rules, clipping, averages, formats; each with its saved state."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from tests.train.support import CONFIG, batch, model, only
from tests.train.test_stages import MODEL, World, pretrain, world  # noqa: F401
from upslope.config import Duration, UsageError
from upslope.machine.context import Context
from upslope.machine.events import Events, read
from upslope.model.aux import Aux
from upslope.model.init import initialise
from upslope.model.transformer import Transformer
from upslope.optim.config import AdamW, Muon, QKClip
from upslope.optim.qk_clip import max_logits
from upslope.optim.ramp import Line, Stairs
from upslope.optim.schedule import Constant
from upslope.precision.config import Fp8V3, MxFp4, Plain
from upslope.train.batch import Batch
from upslope.train.config import Checks, stop_rule
from upslope.train.fit import History, RuleFired, fit
from upslope.train.hooks import Clipping, MovingAverage
from upslope.train.init import Scratch
from upslope.train.integrity import Corrupted, flip
from upslope.train.losses import Imitate
from upslope.train.observers import Logits
from upslope.train.resume import manifests
from upslope.train.skip import Back, SkipRule
from upslope.train.trainer import Trainer

STEPS = 30
RULE = SkipRule(window=16, sigmas=6.0, least=6, patience=50)
BAD = (14, 15, 16)


class Crash(Exception):
    pass


def data(step: int) -> Batch:
    return only(batch((4, 6, 5, 3), seed=step % 7, dtype=torch.float32), "imitate")


class Spiky(Imitate):
    """Multiplies the loss where the batch says so: a spike of loss and gradient alike."""

    def __call__(self, out: Any, b: Batch, total: Any, sums: Any) -> Any:
        loss, said = super().__call__(out, b, total, sums)
        return loss * (1000.0 if int(b.origin[0]) < 0 else 1.0), said


def spiky(step: int) -> Batch:
    b = data(step)
    return b if step not in BAD else Batch(**{**vars(b), "origin": b.origin - 100})


def run(folder: Path, batches: Callable[[int], Batch] = data, loss: Any = None, trainer: Trainer | None = None, **options: Any) -> Any:
    ctx = Context.scratch(folder)
    ctx.events = Events(folder / "events" / "e.jsonl")
    trainer = trainer or Trainer(model(torch.float32), AdamW(lr=2e-3), events=ctx.events)
    trainer.events = ctx.events
    history = fit(trainer, batches, loss or Imitate(), Constant(), STEPS, ctx, **{"save_seconds": 0.0, **options})
    return bits(trainer), history, [e for e in read(folder / "events") if e["kind"] == "alarm"]


def bits(trainer: Trainer) -> dict[str, bytes]:
    return {n: t.detach().numpy().tobytes() for n, t in trainer.state().items()}


def test_spikes_are_skipped_and_seen(tmp_path: Path) -> None:
    plain, _, _ = run(tmp_path / "plain", spiky, Spiky())
    skipped, history, alarms = run(tmp_path / "skip", spiky, Spiky(), skip=RULE)
    assert history.skipped == len(BAD) and plain != skipped
    assert [a["step"] for a in alarms if a["what"].startswith("step skipped")] == list(BAD)
    assert history.facts()["skipped_steps"] == len(BAD)


def without(step: int) -> Batch:
    """Batches as a run sees them that went back from step 16 to 5 and passed over 5 ... 16."""
    return data(step if step < 5 else step + 12)


def test_a_run_that_goes_back_trains_on_what_lies_behind_the_spike(tmp_path: Path) -> None:
    rule = RULE.replace(back=Back(after=3, back=9, anchor=5, most=2))
    want, _, _ = run(tmp_path / "want", without)
    got, history, alarms = run(tmp_path / "got", spiky, Spiky(), skip=rule)
    assert history.rewinds == 1 and [a["to"] for a in alarms if a["what"].startswith("spike: went back")] == [5]
    model_of = lambda b: {n: t for n, t in b.items() if n.startswith(("model.", "optim."))}  # noqa: E731
    assert model_of(got) == model_of(want)


@pytest.mark.parametrize("at", [3, 15, 17, 22])
def test_killed_around_a_rewind_it_ends_with_the_same_bits(at: int, tmp_path: Path) -> None:
    rule = RULE.replace(back=Back(after=3, back=9, anchor=5, most=2))
    want, history, _ = run(tmp_path / "want", spiky, Spiky(), skip=rule)

    def crashing(step: int) -> Batch:
        if step == at:
            raise Crash
        return spiky(step)

    with pytest.raises(Crash):
        run(tmp_path / "got", crashing, Spiky(), skip=rule)
    got, again, _ = run(tmp_path / "got", spiky, Spiky(), skip=rule)
    assert got == want and again == history


class Faulty:
    """Damages the trainer's state at rest, once, while the batch of a step is made."""

    def __init__(self, trainer: Trainer, at: int, name: str) -> None:
        self.trainer, self.at, self.name, self.done = trainer, at, name, False

    def __call__(self, step: int) -> Batch:
        if step == self.at and not self.done:
            self.done = True
            flip(self.trainer.state()[self.name], 3, 7)
        return data(step)


@pytest.mark.parametrize("name", ["model.blocks.0.mixer.q.weight", "optim.blocks.1.ffn.up.weight.v"])
def test_a_bit_flipped_between_steps_is_taken_back(name: str, tmp_path: Path) -> None:
    want, history, _ = run(tmp_path / "want")
    trainer = Trainer(model(torch.float32), AdamW(lr=2e-3))
    got, again, _ = run(tmp_path / "got", Faulty(trainer, 11, name), trainer=trainer)
    assert got == want and again == history  # flipped while the batch was made
    trainer = Trainer(model(torch.float32), AdamW(lr=2e-3))
    fault = Faulty(trainer, 11, name)

    class Flipping(Logits):
        kind = "flipping"
        every: int = 1

        def __call__(self, step: int, model: Any, batch: Batch) -> Any:
            fault(step)
            return {}

    got, again, alarms = run(tmp_path / "seen", trainer=trainer, observers=(Flipping(),))
    assert got == want and again == history
    assert [a["what"] for a in alarms] == ["state changed between steps", "state was damaged: back to the last saved one"]


def test_damage_that_comes_back_ends_the_run(tmp_path: Path) -> None:
    trainer = Trainer(model(torch.float32), AdamW(lr=2e-3))

    class Flipping(Logits):
        kind = "flipping_always"
        every: int = 1

        def __call__(self, step: int, model: Any, batch: Batch) -> Any:
            if step == 5:
                flip(trainer.state()["model.blocks.0.mixer.q.weight"], 3, 7)
            return {}

    with pytest.raises(Corrupted):
        run(tmp_path, trainer=trainer, observers=(Flipping(),))


def test_checks_change_nothing(tmp_path: Path) -> None:
    want, history, _ = run(tmp_path / "a", checks=Checks(digests=0, replay=0, copies=0))
    got, again, alarms = run(tmp_path / "b", checks=Checks(digests=3, replay=4))
    assert got == want and again == history and alarms == []


def test_memory_that_runs_out_halves_the_parts_and_the_size_is_kept(tmp_path: Path) -> None:
    trainer = Trainer(model(), AdamW(lr=2e-3))
    _, whole, _ = run(tmp_path / "want", lambda k: only(batch((4, 4, 4, 4), seed=k), "imitate"), trainer=trainer)
    trainer = Trainer(model(), AdamW(lr=2e-3))
    forward = trainer.model.forward

    def starved(ids: torch.Tensor, *a: Any, **k: Any) -> torch.Tensor:
        if len(ids) > 4:
            raise torch.OutOfMemoryError("out of memory")
        return forward(ids, *a, **k)

    trainer.model.forward = starved
    _, again, alarms = run(tmp_path / "got", lambda k: only(batch((4, 4, 4, 4), seed=k), "imitate"), trainer=trainer)
    assert [(a["before"], a["after"]) for a in alarms] == [(16, 8), (8, 4)] and trainer.micro_tokens == 4
    assert again.series["loss"] == pytest.approx(whole.series["loss"], rel=1e-12)
    fresh = Trainer(model(), AdamW(lr=2e-3))
    run(tmp_path / "got", lambda k: only(batch((4, 4, 4, 4), seed=k), "imitate"), trainer=fresh)
    assert fresh.micro_tokens == 4


@pytest.mark.parametrize(
    ("text", "values", "fires"),
    [
        ("loss > 3", [1, 2, 3, 4], True),
        ("loss > 3", [4, 5, 3], False),
        ("loss > 2 x best for 2 steps", [2, 1, 2.1, 2.2], True),
        ("loss > 2 x best for 2 steps", [2, 1, 2.1, 1.9], False),
        ("loss > 2 x best for 2 steps", [5, 6], False),
        ("loss < 0.5 * start", [2, 0.9], True),
        ("loss < 0.5 * start", [2, 1.1], False),
        ("entropy < 0.05", [], False),
        ("loss > 1e1 for 3 steps", [math.nan, 11, 12], False),
    ],
)
def test_stop_rules(text: str, values: list[float], fires: bool) -> None:
    assert bool(stop_rule(text).fires({"loss": values})) is fires


@pytest.mark.parametrize("text", ["loss", "loss >", "loss = 3", "loss > best", "loss > 2 x worst", "3 > loss", ""])
def test_what_is_no_stop_rule_is_refused(text: str) -> None:
    with pytest.raises(ValidationError, match="not a rule"):
        pretrain(stop_if=(text,))


def test_a_stop_rule_ends_the_run_with_its_state_saved(tmp_path: Path) -> None:
    with pytest.raises(RuleFired, match="tokens = 90, limit 80, after step 5"):
        run(tmp_path, stop_if=[stop_rule("tokens > 80")], save_seconds=1e9)
    assert [m.name[:14] for m in manifests(tmp_path / "work")] == ["step-000000005"]
    want, _, _ = run(tmp_path / "want")
    assert run(tmp_path)[0] == want


BLOCK = CONFIG.blocks["dense"]
FREE: Any = CONFIG.replace(blocks={"dense": BLOCK.replace(mixer=BLOCK.mixer.replace(qk_norm=None))})


def hot(seed: int = 0) -> Any:
    made: Any = initialise(Transformer(FREE), seed).double()
    with torch.no_grad():
        for block in made.blocks:
            block.mixer.q.weight.mul_(8)
    return made


def logits_of(m: Any) -> float:
    b = data(0)
    with torch.no_grad():
        return max(float(v.max()) for v in max_logits(m, Aux(frozenset({"max_logit"})), b.ids, b.seg, b.pos).values())


def test_qk_clip_holds_logits_that_would_stay_high(tmp_path: Path) -> None:
    tau = 2.0
    free, clipped = hot(), hot()
    assert logits_of(free) > 3 * tau
    run(tmp_path / "free", lambda k: data(0), trainer=Trainer(free, AdamW(lr=1e-4)))
    trainer = Trainer(clipped, AdamW(lr=1e-4), hooks=[Clipping(clipped, QKClip(tau=tau))])
    _, history, _ = run(tmp_path / "clipped", lambda k: data(0), trainer=trainer)
    assert logits_of(free) > 3 * tau and logits_of(clipped) <= 1.1 * tau
    assert history.series["max_logit"][0] > 3 * tau and history.series["clipped_heads"][0] > 0 and history.series["clipped_heads"][-1] <= 4


def test_a_moving_average_takes_the_place_of_the_weights_and_survives_a_stop(tmp_path: Path) -> None:
    def trainer() -> Trainer:
        m = model(torch.float32)
        return Trainer(m, AdamW(lr=2e-3), hooks=[MovingAverage(0.9)])

    def crashing(step: int) -> Batch:
        if step == 13:
            raise Crash
        return data(step)

    whole = trainer()
    want, _, _ = run(tmp_path / "a", trainer=whole)
    seen: list[torch.Tensor] = []
    with pytest.raises(Crash):
        run(tmp_path / "b", crashing, trainer=trainer())
    again = trainer()
    assert run(tmp_path / "b", trainer=again)[0] == want
    # by hand, from the weights after each step
    plain = Trainer(model(torch.float32), AdamW(lr=2e-3))
    seen.append(plain.model.final_norm.weight.detach().clone())
    for k in range(STEPS):
        plain.step(data(k), Imitate(), 2e-3)
        seen.append(seen[-1] * 0.9 + plain.model.final_norm.weight.detach() * 0.1)
    again.finish()
    assert torch.allclose(again.model.final_norm.weight, seen[-1], atol=1e-6)
    assert not torch.equal(again.model.final_norm.weight, plain.model.final_norm.weight)


def test_fp16_lowers_its_scale_on_overflow_and_goes_on(tmp_path: Path) -> None:
    trainer = Trainer(model(torch.float32), AdamW(lr=2e-3), numerics="fp16")
    assert trainer.scale is not None
    trainer.scale.value = 2.0**40
    _, history, alarms = run(tmp_path, trainer=trainer)
    assert trainer.scale.value < 2.0**40 and history.skipped == sum("overflow" in a["what"] for a in alarms) > 0
    assert trainer.refused == 0 and history.series["loss"][-1] < history.series["loss"][0]


def test_logits_are_watched(tmp_path: Path) -> None:
    m = hot().float()
    _, _, alarms = run(tmp_path, trainer=Trainer(m, AdamW(lr=1e-4)), observers=(Logits(every=10, attention=1.0, tokens=8),))
    rows = [e["values"] for e in read(tmp_path / "events") if e["kind"] == "observation"]
    b = data((STEPS - 1) % 7).split(8)[0]
    with torch.no_grad():
        z = m.logits(m(b.ids, b.seg, b.pos))
        largest = max(float(v.max()) for v in max_logits(m, Aux(frozenset({"max_logit"})), b.ids, b.seg, b.pos).values())
    assert rows[-1]["output"] == pytest.approx(float(z.max()), rel=1e-5)
    assert rows[-1]["lse2"] == pytest.approx(float(z.logsumexp(-1).square().mean()), rel=1e-5)
    assert rows[-1]["attention"] == pytest.approx(largest, rel=1e-5) and set(rows[-1]) >= {"attention/0", "attention/1"}
    assert len([a for a in alarms if a["what"].startswith("attention")]) == 3
    assert Logits(output=0.5).alarms({"lse2": 0.6}) and not Logits().alarms({"lse2": 9.0, "attention": 9.0})


@pytest.mark.parametrize(
    "changes",
    [
        {"precision": Fp8V3(numerics="fp32")},
        {"precision": MxFp4(numerics="fp32")},
        {"precision": Plain(numerics="fp16")},
        {"ema": 0.9},
        {"skip": SkipRule(window=4, sigmas=0.001, least=2, patience=50)},
        {"ramp": Stairs(since=(0, 256), batches=(64, 128))},
        {"ramp": Line(first=64, last=128, over=512, grain=32)},
    ],
    ids=lambda c: "-".join(f"{k}:{getattr(v, 'kind', v)}" for k, v in c.items()),
)
def test_each_setting_of_a_stage_changes_its_result(changes: dict[str, Any], world: World, tmp_path: Path) -> None:  # noqa: F811
    plain, _ = world.run(pretrain(length=Duration.of("8st")), tmp_path / "plain")
    other, _ = world.run(pretrain(length=Duration.of("8st"), **changes), tmp_path / "other")
    a, b = plain.model().state_dict(), other.model().state_dict()
    assert a.keys() == b.keys() and any(not torch.equal(a[n], b[n]) for n in a)
    assert all(bool(torch.isfinite(t).all()) for t in b.values())


def test_qk_clip_in_a_stage(world: World, tmp_path: Path) -> None:  # noqa: F811
    block = MODEL.blocks["dense"]
    free = Scratch(model=MODEL.replace(blocks={"dense": block.replace(mixer=block.mixer.replace(qk_norm=None))}))
    found = [
        world.run(pretrain(init=free, optim=AdamW(lr=1e-3), length=Duration.of("8st"), **more), tmp_path / str(i))[0].model().state_dict()
        for i, more in enumerate(({}, {"qk_clip": QKClip(tau=1e9)}, {"qk_clip": QKClip(tau=0.001)}))
    ]
    q = "blocks.0.mixer.q.weight"
    assert torch.allclose(found[0][q], found[1][q], atol=1e-5) and not torch.allclose(found[0][q], found[2][q], atol=1e-5)
    with pytest.raises(UsageError, match="QK-norm"):
        world.run(pretrain(qk_clip=QKClip()), tmp_path / "bounded")


def test_a_ramp_reads_the_rows_in_order() -> None:
    stage = pretrain(length=Duration.of("512tok"), ramp=Stairs(since=(0, 128), batches=(64, 128)))
    assert stage.batches(0, 0) == [(0, 2), (2, 2), (4, 4), (8, 4), (12, 4)]
    assert pretrain(length=Duration.of("3st"), ramp=Stairs(since=(0, 128), batches=(64, 128))).batches(0, 0) == [(0, 2), (2, 2), (4, 4)]
    with pytest.raises(ValidationError, match="whole rows"):
        pretrain(ramp=Stairs(since=(0,), batches=(33,)))


def test_history_is_comparable() -> None:
    assert History(1, 2, 0, {}) == History(1, 2, 0, {}, 0, 0)


def test_muon_and_replay_agree(tmp_path: Path) -> None:
    want, _, _ = run(tmp_path / "a", trainer=Trainer(model(torch.float32), Muon(lr=2e-3)), checks=Checks(replay=0))
    got, _, alarms = run(tmp_path / "b", trainer=Trainer(model(torch.float32), Muon(lr=2e-3)), checks=Checks(replay=1))
    assert got == want and alarms == []


def test_a_model_that_cannot_fit_is_refused_before_it_is_made(world: World, tmp_path: Path) -> None:  # noqa: F811
    block = MODEL.blocks["dense"]
    wide = MODEL.replace(d_model=65536, blocks={"dense": block.replace(ffn=block.ffn.replace(hidden=262144))})
    with pytest.raises(UsageError, match=r"(?s)needs about .*B.*way out"):
        world.run(pretrain(init=Scratch(model=wide)), tmp_path)
