"""Silent data corruption: every injected flip is found, clean steps raise nothing."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import ANY

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.train.support import batch, model, only
from upslope.machine.events import Events, read
from upslope.optim.config import AdamW, Muon
from upslope.train.integrity import Corrupted, Integrity, Replayed, checksum, differing, digest, digests, flip, replay
from upslope.train.losses import Imitate
from upslope.train.trainer import Trainer


def trained(optim: AdamW | Muon | None = None, dtype: torch.dtype = torch.float32, micro_tokens: int = 0) -> Trainer:
    trainer = Trainer(model(dtype), optim or AdamW(lr=1e-3), micro_tokens=micro_tokens)
    for k in range(2):
        step(trainer, k)
    return trainer


def step(trainer: Trainer, k: int) -> Any:
    return trainer.step(only(batch((4, 6, 5, 3), seed=k, dtype=torch.float32), "imitate"), Imitate(), 1e-3)


def same(trainer: Trainer, other: Trainer) -> bool:
    return digests(trainer.state()) == digests(other.state())


DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.uint8, torch.float8_e4m3fn]


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_single_flip_changes_both_digests(dtype: torch.dtype) -> None:
    tensor = torch.arange(1, 6).to(torch.float32).to(dtype)
    clean = digest(tensor), checksum(tensor)
    for index in range(5):
        for bit in range(8 * tensor.element_size()):
            flip(tensor, index, bit)
            assert digest(tensor) != clean[0] and checksum(tensor) != clean[1]
            flip(tensor, index, bit)
    assert (digest(tensor), checksum(tensor)) == clean


def test_the_checksum_is_the_weighted_sum_and_sees_order() -> None:
    values = torch.tensor([7, -3, 2**40], dtype=torch.int64)
    assert checksum(values) == (7 * 1 + -3 * 3 + 2**40 * 5) % 2**64
    assert checksum(values) != checksum(values.flip(0))
    assert checksum(torch.tensor([True, False])) == 1 and checksum(torch.tensor(3.0)) == checksum(torch.tensor([3.0]))
    assert digest(torch.zeros(0)) == digest(torch.zeros(0, 3)) and checksum(torch.zeros(0)) == 0
    assert digest(torch.arange(6.0).view(2, 3).T) == digest(torch.arange(6.0).view(2, 3).T.contiguous())


def test_the_checksum_does_not_depend_on_its_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    values = torch.randn(1000)
    whole = checksum(values)
    monkeypatch.setattr("upslope.train.integrity.CHUNK", 64)
    assert checksum(values) == whole


def test_100_flips_at_rest_are_all_found(tmp_path: Path) -> None:
    rng, trainer = np.random.default_rng(0), trained(Muon(lr=5e-3))
    watch = Integrity(events=Events(tmp_path / "e.jsonl"))
    live: dict[str, Tensor] = {n: t for n, t in trainer.state().items() if not n.endswith("steps") and not n.startswith("trainer.")}
    for _ in range(100):
        watch.after(2, trainer.state())
        name = list(live)[rng.integers(len(live))]
        index, bit = int(rng.integers(live[name].numel())), int(rng.integers(8 * live[name].element_size()))
        flip(live[name], index, bit)
        with pytest.raises(Corrupted, match="tensors changed between steps"):
            watch.before(2, trainer.state())
        flip(live[name], index, bit)
        watch.before(2, trainer.state())
    assert len([e for e in read(tmp_path) if e["kind"] == "alarm"]) == 100


def test_200_clean_steps_raise_nothing_and_chains_of_equal_runs_agree() -> None:
    chains = []
    for _ in range(2):
        trainer, watch = Trainer(model(torch.float32), AdamW(lr=1e-3)), Integrity()
        for k in range(100):
            watch.before(k, trainer.state())
            if k % 10 == 9:
                assert replay(trainer, partial(step, trainer, k)) == (ANY, 2, ())
            else:
                step(trainer, k)
            watch.after(k + 1, trainer.state())
        chains.append(watch.chain)
    assert chains[0] == chains[1] != 0
    again = Integrity()
    again.load(watch.state())
    assert again.chain == watch.chain


def test_every_chooses_the_pauses_that_are_watched() -> None:
    trainer, watch = trained(), Integrity(every=3)
    for k, found in ((2, False), (3, True)):
        watch.after(k, trainer.state())
        flip(trainer.optimizer.parameters[0], 0, 3)
        if found:
            with pytest.raises(Corrupted):
                watch.before(k, trainer.state())
        else:
            watch.before(k, trainer.state())


def faulty(trainer: Trainer, runs: tuple[int, ...], rng: np.random.Generator, events: Events | None = None) -> Replayed:
    """A replayed step in which a random gradient bit flips after the backward pass, in some of its runs."""
    parameters = trainer.optimizer.parameters
    target = parameters[rng.integers(len(parameters))]
    count = -1

    def inject(p: Tensor) -> None:
        if count in runs and p.grad is not None:
            flip(p.grad, int(rng.integers(p.numel())), int(rng.integers(8 * p.element_size())))

    def run() -> Any:
        nonlocal count
        count += 1
        return step(trainer, 5)

    hook = target.register_post_accumulate_grad_hook(inject)
    try:
        return replay(trainer, run, events)
    finally:
        hook.remove()


@pytest.mark.parametrize("optim", [AdamW(lr=1e-3), Muon(lr=5e-3)])
def test_gradient_flips_inside_a_replayed_step_are_all_found_and_overruled(optim: AdamW | Muon) -> None:
    rng, trainer, clean = np.random.default_rng(1), trained(optim), trained(optim)
    start = {n: t.clone() for n, t in trainer.state().items()}
    report = step(clean, 5)
    for case in range(50):
        trainer.load(start)
        wrong = case % 2
        found = faulty(trainer, (wrong,), rng)
        assert found.faulty == (wrong,) and found.runs == 3
        assert found.report == report and same(trainer, clean)


def test_a_step_that_never_repeats_is_given_up(tmp_path: Path) -> None:
    with pytest.raises(Corrupted, match="three results"):
        faulty(trained(), (0, 1, 2), np.random.default_rng(2), Events(tmp_path / "e.jsonl"))
    assert [e["runs"] for e in read(tmp_path) if e["kind"] == "alarm"] == [3]


def test_a_replayed_step_is_the_step_with_the_same_random_numbers() -> None:
    trainer, clean = trained(micro_tokens=9), trained(micro_tokens=9)
    torch.manual_seed(3)
    drawn: list[float] = []

    def run() -> Any:
        drawn.append(float(torch.rand(1)))
        return step(trainer, 5)

    assert replay(trainer, run).runs == 2
    assert drawn[0] == drawn[1]
    step(clean, 5)
    assert same(trainer, clean)


def test_ranks_that_differ_are_named() -> None:
    good = {"a": 1, "b": 2}
    assert differing([good, good, good]) == {}
    assert differing([good, {**good, "b": 3}, good]) == {"b": (1,)}
    assert differing([good, {**good, "a": 9}]) == {"a": (0, 1)}
    assert differing([good, {"a": 1}, good]) == {"b": (1,)}
