"""The loop: interrupted anywhere it ends with the same bits; observers cannot touch it; events tell the story."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from tests.train.support import batch, model, only
from upslope.config import UsageError
from upslope.machine.context import Context
from upslope.machine.events import Events, read
from upslope.machine.stage import Paused
from upslope.optim.config import Muon
from upslope.optim.schedule import WSD
from upslope.train.batch import Batch
from upslope.train.fit import History, fit
from upslope.train.losses import Imitate
from upslope.train.observers import Observer, Weights
from upslope.train.resume import latest_step, save_step
from upslope.train.stability import live_spike_score, spike_score
from upslope.train.trainer import Trainer

STEPS = 12


class Crash(Exception):
    pass


def data(step: int) -> Batch:
    return only(batch((4, 6, 5, 3), seed=step, dtype=torch.float32), "imitate")


def crashing(at: int) -> Callable[[int], Batch]:
    def batches(step: int) -> Batch:
        if step == at:
            raise Crash
        return data(step)

    return batches


def run(folder: Path, batches: Callable[[int], Batch] = data, **options: Any) -> tuple[dict[str, bytes], History]:
    ctx = Context.scratch(folder)
    ctx.events = Events(folder / "events" / "e.jsonl")
    trainer = Trainer(model(torch.float32), Muon(lr=5e-3), events=ctx.events)
    history = fit(trainer, batches, Imitate(z_loss=1e-4), WSD(warmup=2), STEPS, ctx, **{"save_seconds": 0.0, **options})
    return {n: t.detach().numpy().tobytes() for n, t in trainer.state().items()}, history


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, bytes], History]:
    return run(tmp_path_factory.mktemp("whole"))


@pytest.mark.parametrize("at", [1, 5, 11])
def test_an_interrupted_fit_ends_with_the_same_bits(at: int, whole: Any, tmp_path: Path) -> None:
    with pytest.raises(Crash):
        run(tmp_path, crashing(at))
    state, history = run(tmp_path)
    assert state == whole[0]
    assert history == whole[1]


def test_kill_9_and_again_gives_the_same_bits(whole: Any, tmp_path: Path) -> None:
    at = int(np.random.default_rng().integers(1, STEPS))
    code = (
        "import os, signal, sys\nfrom pathlib import Path\nfrom tests.train.test_fit import data, run\n"
        f"run(Path(sys.argv[1]), lambda k: os.kill(os.getpid(), signal.SIGKILL) if k == {at} else data(k))"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=root, env=os.environ | {"PYTHONPATH": str(root)}, check=False)
    assert done.returncode == -signal.SIGKILL
    found = latest_step(tmp_path / "work")
    assert found is not None
    assert 1 <= found[0] <= at
    assert run(tmp_path)[0] == whole[0]


def test_intervals_cannot_change_a_bit(whole: Any, tmp_path: Path) -> None:
    assert run(tmp_path, save_seconds=1e9, log_every=1)[0] == whole[0]


def test_stopping_saves_and_pauses(whole: Any, tmp_path: Path) -> None:
    ctx = Context.scratch(tmp_path)

    def batches(step: int) -> Batch:
        ctx.stopping = step >= 6
        return data(step)

    with pytest.raises(Paused):
        fit(Trainer(model(torch.float32), Muon(lr=5e-3)), batches, Imitate(z_loss=1e-4), WSD(warmup=2), STEPS, ctx)
    found = latest_step(tmp_path / "work")
    assert found is not None
    assert found[0] == 7
    assert run(tmp_path)[0] == whole[0]


def test_a_damaged_save_is_passed_over_with_an_alarm(whole: Any, tmp_path: Path) -> None:
    with pytest.raises(Crash):
        run(tmp_path, crashing(8))
    newest = sorted((tmp_path / "work").glob("step-*"))[-1]
    newest.write_bytes(newest.read_bytes()[:-100])
    assert run(tmp_path)[0] == whole[0]
    assert any(e["kind"] == "alarm" and e["file"] == newest.name for e in read(tmp_path / "events"))


def test_only_the_last_saves_are_kept(tmp_path: Path) -> None:
    for k in range(5):
        save_step(tmp_path, k, {"x": torch.full((3,), float(k))})
    assert len(list(tmp_path.glob("step-*"))) == 2
    found = latest_step(tmp_path)
    assert found is not None
    assert found[0] == 4
    assert found[1]["x"].tolist() == [4.0] * 3


class Rude(Observer):
    """Draws from the global generators and leaves the model in another mode."""

    kind: ClassVar[str] = "rude"

    def __call__(self, step: int, model: torch.nn.Module, batch: Batch) -> Mapping[str, float]:
        model.eval() if model.training else model.train()
        return {"drawn": float(torch.rand(1))}


class Vandal(Observer):
    """Changes a weight."""

    kind: ClassVar[str] = "vandal"

    def __call__(self, step: int, model: torch.nn.Module, batch: Batch) -> Mapping[str, float]:
        next(model.parameters()).mul_(1.0001)
        return {}


def test_observers_cannot_change_a_bit_and_leave_rows(whole: Any, tmp_path: Path) -> None:
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    state, _ = run(tmp_path, observers=(Rude(every=2), Weights(every=5)))
    assert torch.equal(torch.rand(1), expected)
    assert state == whole[0]
    rows = [e for e in read(tmp_path / "events") if e["kind"] == "observation"]
    assert [r["step"] for r in rows if r["observer"] == "weights"] == [5, 10, 12]
    assert len([r for r in rows if r["observer"] == "rude"]) == 6


def test_an_observer_that_touches_a_weight_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="changed the weights"):
        run(tmp_path, observers=(Vandal(every=3),))


def test_events_and_history(whole: Any, tmp_path: Path) -> None:
    _, history = run(tmp_path, tokens=STEPS * 18)
    events = read(tmp_path / "events")
    metrics = [e for e in events if e["kind"] == "metric"]
    assert [e["step"] for e in metrics] == [5, 10, 12]
    assert {"loss", "grad_norm", "lr", "tokens_per_second", "nll", "lse2"} <= set(metrics[0]["values"])
    assert [e for e in events if e["kind"] == "progress"][-1]["done"] == STEPS * 18
    assert history.steps == STEPS
    assert len(history.series["loss"]) == STEPS
    assert set(history.facts()["spike_score_loss"]) == {"rolling_1000_7sd", "live_128_6sd"}


def test_the_learning_rate_follows_the_schedule(tmp_path: Path) -> None:
    run(tmp_path, log_every=1)
    rates = [e["values"]["lr"] for e in read(tmp_path / "events") if e["kind"] == "metric"]
    assert rates == pytest.approx([5e-3 * WSD(warmup=2).at(k, STEPS) for k in range(STEPS)])


def test_spike_scores() -> None:
    quiet = np.sin(np.arange(400)) * 0.1
    assert spike_score(quiet) == live_spike_score(quiet) == 0.0
    loud = quiet.copy()
    loud[[100, 300]] = 5.0
    assert spike_score(loud) == pytest.approx(100 * 2 / 370)
    assert live_spike_score(loud) == pytest.approx(100 * 2 / 370)
    deep = quiet.copy()
    deep[200] = -5.0
    assert spike_score(deep) == pytest.approx(100 / 370)
    assert live_spike_score(deep) == 0.0
    broken = quiet.copy()
    broken[50] = np.nan
    assert spike_score(broken) == pytest.approx(100 / 370)
    assert spike_score(np.ones(300)) == 0.0
    assert spike_score([1.0, 9.0]) == 0.0


def test_zero_steps_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="at least one"):
        fit(Trainer(model(torch.float32), Muon()), data, Imitate(), WSD(), 0, Context.scratch(tmp_path))
