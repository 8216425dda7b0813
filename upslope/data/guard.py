"""A watch over work on untrusted records: one that hangs or brings its process down loses itself, never its neighbours.

The records are worked on in a forked child that sends each result as it is done; where none comes for `seconds`, or the child dies, the
parent gives the record up, with a reason, and forks anew at the next one. There is no hop between processes for each record.
"""

from __future__ import annotations

import os
import pickle
import select
import signal
import struct
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, TypeVar

from upslope.machine.process import die_with_parent

T = TypeVar("T")
R = TypeVar("R")
HEAD = struct.Struct("<Q")


class Lost(NamedTuple):
    """There is no result. why: "timeout: …", or "crash: …" with the signal or exit code."""

    why: str


def guarded(items: Sequence[T], work: Callable[[T], R], seconds: float) -> Iterator[R | Lost]:
    """The results of `work` in order. Results are pickled; an exception in `work` comes out here, as without a guard."""
    at = 0
    while at < len(items):
        for result in _child(items, at, work, seconds):
            if isinstance(result, BaseException):
                raise result
            yield result
            at += 1
            if isinstance(result, Lost):
                break


def _child(items: Sequence[T], at: int, work: Callable[[T], R], seconds: float) -> Iterator[R | Lost | BaseException]:
    """Results from `at` on; the last one is a `Lost` where the child had to be given up."""
    reader, writer = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.close(reader)
            die_with_parent(signal.SIGKILL)
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            for item in items[at:]:
                try:
                    body = pickle.dumps(work(item), pickle.HIGHEST_PROTOCOL)
                except Exception as e:
                    body = pickle.dumps(_plain(e))
                _write(writer, HEAD.pack(len(body)) + body)
            code = 0
        finally:
            os._exit(code)
    os.close(writer)
    try:
        for _ in range(at, len(items)):
            message, why = _read(reader, seconds)
            if message is None:
                os.kill(pid, signal.SIGKILL)
                status = os.waitpid(pid, 0)[1]
                pid = 0
                if not why and os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
                    raise MemoryError("the process that worked on a record was killed from outside")  # says nothing about the record
                died = f"crash: signal {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else f"crash: exit code {os.WEXITSTATUS(status)}"
                yield Lost(why or died)
                return
            yield pickle.loads(message)
    finally:
        os.close(reader)
        if pid:
            os.kill(pid, signal.SIGKILL)  # a child that has sent everything, or whose results nobody wants any more
            os.waitpid(pid, 0)


def _plain(error: Exception) -> Exception:
    """The exception, or one with its text if it cannot be pickled."""
    try:
        pickle.loads(pickle.dumps(error))
        return error
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")


def _write(file: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(file, view) :]


def _read(file: int, seconds: float) -> tuple[bytes | None, str]:
    """(one message, ""), or (None, why there is none: "" = the other side is gone)."""
    data, wanted, deadline = bytearray(), HEAD.size, time.monotonic() + seconds
    while len(data) < wanted:
        if not select.select([file], [], [], max(0.0, deadline - time.monotonic()))[0]:
            return None, f"timeout: more than {seconds:g} s"
        block = os.read(file, min(1 << 20, wanted - len(data)))
        if not block:
            return None, ""
        data += block
        if wanted == HEAD.size == len(data):
            wanted += HEAD.unpack(data)[0]
    return bytes(data[HEAD.size :]), ""
