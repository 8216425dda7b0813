"""Out of memory: the same step again in smaller parts, with the same result."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch

from upslope.config import UsageError
from upslope.machine.events import Events
from upslope.train.batch import Batch

R = TypeVar("R")
_WORDS = ("can't allocate memory", "not enough memory", "out of memory")


class HalfDone(RuntimeError):
    """Memory ran out while the update was being written, so the step cannot be done again from here: reload a saved state."""


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out: torch on a GPU, Python, or torch's CPU allocator (a RuntimeError by its words)."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(w in str(error) for w in _WORDS)


def with_backoff(
    run: Callable[[int], R],
    micro_tokens: int,
    floor: int,
    *,
    clear: Callable[[], None] = lambda: None,
    events: Events | None = None,
    step: int = 0,
) -> tuple[R, int]:
    """`run(micro_tokens)`; where memory runs out, `clear()` and again with half of it: (result, the size that worked).

    floor: smallest size to try. Other errors pass through. Raises UsageError where `floor` is too much.
    """
    while True:
        try:
            return run(micro_tokens), micro_tokens
        except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
            if not out_of_memory(error):
                raise
            said = str(error).partition("\n")[0][:200]
        # outside the handler: its traceback kept the tensors of the failed pass alive
        clear()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if micro_tokens <= floor:
            raise UsageError(
                f"out of memory with micro_tokens = {micro_tokens}, which cannot be smaller than {floor} (one whole segment): {said}\n"
                "way out: shorter segments, a smaller model, activation checkpointing, or a machine with more memory"
            )
        smaller = max(floor, micro_tokens // 2)
        (events or Events()).alarm("out of memory: the step is done again in smaller parts", step=step, before=micro_tokens, after=smaller)
        micro_tokens = smaller


def step_with_backoff(trainer: Any, batch: Batch, run: Callable[[], R], *, floor: int = 1) -> R:
    """`run()`, a step of the trainer on a batch, in smaller parts where memory runs out; `trainer.micro_tokens` keeps the size that worked.

    The loss and gradients of a step do not depend on how it is split, beyond rounding. floor: never raised above what is needed for
    progress: a segment is not split, so sizes below the longest one are not tried. Raises HalfDone where the update had begun.
    """
    whole = len(batch)
    size = whole if trainer.micro_tokens <= 0 else min(trainer.micro_tokens, whole)
    steps, before = trainer.steps, _versions(trainer)

    def smaller(micro_tokens: int) -> R:
        trainer.micro_tokens = micro_tokens if micro_tokens < whole else trainer.micro_tokens
        return run()

    def clear() -> None:
        trainer.optimizer.clear()
        if _versions(trainer) != before:
            raise HalfDone("memory ran out while the weights were updated\nway out: continue from the saved state")
        trainer.steps = steps

    report, _ = with_backoff(
        smaller, size, min(size, max(floor, int(batch.lengths().max()))), clear=clear, events=trainer.events, step=trainer.steps
    )
    return report


def _versions(trainer: Any) -> list[float]:
    """How often each weight and each tensor of the optimizer's state has been written to, and its step counts."""
    state = list(trainer.optimizer.state().values())
    counts = [float(t) for t in state if t.ndim == 0 and t.device.type == "cpu"]
    return [t._version for t in (*trainer.optimizer.parameters, *state)] + counts
