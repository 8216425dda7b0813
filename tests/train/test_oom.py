"""Out of memory: the step is done again in smaller parts, with the same result."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.train.support import batch, model, only
from upslope.config import UsageError
from upslope.machine.events import Events, read
from upslope.optim.config import AdamW
from upslope.train.batch import Batch
from upslope.train.losses import Imitate
from upslope.train.memory import HalfDone, out_of_memory, step_with_backoff, with_backoff
from upslope.train.protocol import StepReport
from upslope.train.trainer import Trainer

SIZES = (4, 4, 3, 4, 4, 4, 3, 4, 4, 4, 2, 4)


def stepped(trainer: Trainer, data: Batch, loss: Imitate) -> StepReport:
    return step_with_backoff(trainer, data, lambda: trainer.step(data, loss, 1e-2))


def fresh(tmp_path: Path | None = None, micro_tokens: int = 0) -> Trainer:
    events = None if tmp_path is None else Events(tmp_path / "e.jsonl")
    return Trainer(model(), AdamW(lr=1e-2), events=events, micro_tokens=micro_tokens)


def starve(trainer: Trainer, failures: int, kind: Callable[[], BaseException], monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Makes the second forward pass of the next `failures` attempts (or the first, of one part) fail; the sizes that were tried."""
    tried: list[int] = []
    real, calls = trainer._out, [0]

    def out(part: Any, *rest: Any) -> Any:
        calls[0] += 1
        if len(tried) < failures and (calls[0] == 2 or trainer.micro_tokens == 0 or trainer.micro_tokens >= 44):
            tried.append(trainer.micro_tokens)
            calls[0] = 0
            raise kind()
        return real(part, *rest)

    monkeypatch.setattr(trainer, "_out", out)
    return tried


@pytest.mark.parametrize(
    "kind",
    [
        lambda: torch.OutOfMemoryError("CUDA out of memory"),
        MemoryError,
        lambda: RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory: 9 bytes"),
    ],
)
def test_two_failures_quarter_the_micro_batch_and_change_nothing(
    kind: Callable[[], BaseException], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = only(batch(SIZES, seed=1), "imitate")
    plain, starved = fresh(), fresh(tmp_path)
    starve(starved, 2, kind, monkeypatch)
    for _ in range(3):
        want, got = plain.step(data, Imitate(z_loss=1e-4), 1e-2), stepped(starved, data, Imitate(z_loss=1e-4))
        assert abs(want.loss - got.loss) <= 1e-10 * abs(want.loss) and abs(want.grad_norm - got.grad_norm) <= 1e-10
    assert starved.micro_tokens == len(data) // 4 == 11
    assert starved.steps == plain.steps == 3
    for a, b in zip(plain.optimizer.parameters, starved.optimizer.parameters):
        assert torch.linalg.vector_norm(a - b) <= 1e-9 * torch.linalg.vector_norm(a)
    told = [(e["before"], e["after"]) for e in read(tmp_path) if e["kind"] == "alarm"]
    assert told == [(44, 22), (22, 11)]


def test_real_allocations_that_fail_are_recognised_and_other_errors_are_not() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60)
    assert out_of_memory(caught.value)
    assert not out_of_memory(RuntimeError("shapes cannot be multiplied"))
    with pytest.raises(RuntimeError, match="shapes"):
        with_backoff(lambda _: (_ for _ in ()).throw(RuntimeError("shapes")), 8, 1)


def test_the_floor_is_tried_and_then_the_way_out_is_named() -> None:
    tried: list[int] = []

    def run(size: int) -> int:
        tried.append(size)
        raise MemoryError

    with pytest.raises(UsageError, match=r"micro_tokens = 3, which cannot be smaller than 3(.|\n)*way out"):
        with_backoff(run, 20, 3)
    assert tried == [20, 10, 5, 3]
    assert with_backoff(lambda size: size * 2, 7, 1) == (14, 7)


def test_sizes_below_the_longest_segment_are_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = fresh(micro_tokens=16)
    monkeypatch.setattr(trainer, "_out", lambda *_: (_ for _ in ()).throw(MemoryError()))
    with pytest.raises(UsageError, match="cannot be smaller than 9"):
        stepped(trainer, only(batch((9, 4, 5, 6)), "imitate"), Imitate())


def test_a_size_that_is_given_stays_when_memory_suffices() -> None:
    for given in (0, 8, 1000):
        trainer = fresh(micro_tokens=given)
        stepped(trainer, only(batch((4, 4, 4, 4)), "imitate"), Imitate())
        assert trainer.micro_tokens == given


def test_a_failure_while_weights_are_written_is_not_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = fresh()

    def torn(lr: float) -> None:
        with torch.no_grad():
            trainer.optimizer.parameters[0].mul_(0.9)
        raise MemoryError

    monkeypatch.setattr(trainer.optimizer, "step", torn)
    with pytest.raises(HalfDone, match="way out"):
        stepped(trainer, only(batch(SIZES), "imitate"), Imitate())


def test_a_failure_inside_the_update_before_any_weight_is_written_is_seen_too(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = Trainer(model(), AdamW(lr=1e-2, weight_decay=0.0))
    real = trainer.optimizer.parts[0][0].step

    def torn(lr: float) -> None:
        kept = [p.detach().clone() for p in trainer.optimizer.parameters]
        real(lr)
        for p, before in zip(trainer.optimizer.parameters, kept):
            p.data = before
        raise MemoryError

    monkeypatch.setattr(trainer.optimizer, "step", torn)
    with pytest.raises(HalfDone, match="way out"):
        stepped(trainer, only(batch(SIZES), "imitate"), Imitate())
