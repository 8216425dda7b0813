"""One record that hangs or kills its process loses itself; all others come through, in order."""

from __future__ import annotations

import os
import signal
import time

import pytest

from upslope.data.guard import Lost, guarded


def work(item: int | str) -> int:
    if item == "hang":
        time.sleep(60)
    if item == "die":
        os.kill(os.getpid(), signal.SIGUSR1)
    if item == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if item == "exit":
        os._exit(3)
    if item == "raise":
        raise ValueError("bad item")
    return int(item) * 2


def test_results_come_in_order_and_losses_are_said() -> None:
    items = [1, "hang", 2, "die", "exit", 3]
    found = list(guarded(items, work, 0.5))
    assert found == [2, Lost("timeout: more than 0.5 s"), 4, Lost(f"crash: signal {int(signal.SIGUSR1)}"), Lost("crash: exit code 3"), 6]
    assert list(guarded([], work, 1.0)) == [] and next(guarded(["die"], work, 1.0)).why.startswith("crash")  # type: ignore[union-attr]


def test_big_results_arrive_whole_and_an_exception_comes_out() -> None:
    assert list(guarded([1, 2], lambda n: "x" * (n * 3_000_000), 5.0)) == ["x" * 3_000_000, "x" * 6_000_000]
    with pytest.raises(ValueError, match="bad item"):
        list(guarded([1, "raise", 2], work, 5.0))


def test_what_the_machine_does_is_not_laid_to_the_record() -> None:
    with pytest.raises(MemoryError, match="killed from outside"):
        list(guarded([1, "killed", 2], work, 5.0))


def test_no_child_is_left_behind() -> None:
    stream = guarded(list(range(100)), work, 5.0)
    assert next(stream) == 0
    stream.close()
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)
