"""Launchers decide only where `worker STORE FP` runs."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import traceback
from pathlib import Path
from typing import Protocol

from upslope.machine.identity import SHORT
from upslope.machine.process import die_with_parent
from upslope.machine.stage import FAILED
from upslope.machine.worker import Executing, work


class Job(Protocol):
    """A started job."""

    def poll(self) -> int | None:
        """The exit code, or None while it runs; negative = killed by that signal."""

    def stop(self) -> None:
        """Asks it to save and pause."""

    def kill(self) -> None:
        """Ends it at once; the next run resumes from what is on disk."""


class Launcher(Protocol):
    """Starts jobs; `close` ends whatever serves them."""

    def start(self, fp: str) -> Job: ...

    def close(self) -> None: ...


class Inline:
    """Runs each job in this very process, to its end: for debuggers and notebooks."""

    def __init__(self, store: Path) -> None:
        self.store = store
        Executing.asked = False  # of an earlier run in this process

    def start(self, fp: str) -> Job:
        """Blocks until the job has ended."""
        before = signal.signal(signal.SIGINT, Executing.stop)
        try:
            return _Done(work(self.store, fp))
        finally:
            signal.signal(signal.SIGINT, before)

    def close(self) -> None:
        """Nothing to end."""


class _Done:
    def __init__(self, code: int) -> None:
        self.code = code

    def poll(self) -> int | None:
        return self.code

    def stop(self) -> None:
        pass

    kill = stop


class Local:
    """Jobs as children of a warm process that has imported torch once (a cold start costs 2 s a stage)."""

    def __init__(self, store: Path) -> None:
        self.store = store
        self._codes: dict[str, int] = {}
        self._buffer = b""
        # user modules that this process can import must be importable there too
        # freed tensors stay with the process instead of going back to the kernel page by page: about 5 % of a training step
        memory = {"MALLOC_MMAP_THRESHOLD_": str(1 << 28), "MALLOC_TRIM_THRESHOLD_": str(1 << 30)}
        environment = {**memory, **os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p), "TOKENIZERS_PARALLELISM": "true"}
        self._zygote = subprocess.Popen(
            [sys.executable, "-m", "upslope.machine.launcher", str(store)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
            env=environment,
        )

    def start(self, fp: str) -> Job:
        """Forks a child for the job."""
        self._codes.pop(fp, None)
        self.send("run", fp)
        return _Child(self, fp)

    def send(self, verb: str, fp: str) -> None:
        """Tells the warm process to run, stop or kill a job."""
        assert self._zygote.stdin is not None
        try:
            self._zygote.stdin.write(f"{verb} {fp}\n".encode())
            self._zygote.stdin.flush()
        except BrokenPipeError:
            pass

    def code(self, fp: str) -> int | None:
        """The exit code of a job, if it has ended."""
        assert self._zygote.stdout is not None
        out = self._zygote.stdout.fileno()
        while select.select([out], [], [], 0)[0]:
            block = os.read(out, 65536)
            if not block:
                return self._codes.get(fp, FAILED)  # the warm process is gone, and its children with it
            self._buffer += block
        while b"\n" in self._buffer:
            line, _, self._buffer = self._buffer.partition(b"\n")
            _, ended, code = line.decode().split()
            self._codes[ended] = int(code)
        return self._codes.get(fp)

    def close(self) -> None:
        """Lets the warm process end; running children are asked to stop first."""
        assert self._zygote.stdin is not None
        try:
            self._zygote.stdin.close()
            self._zygote.wait(timeout=30)
        except (BrokenPipeError, subprocess.TimeoutExpired):
            self._zygote.kill()
            self._zygote.wait()


class _Child:
    def __init__(self, local: Local, fp: str) -> None:
        self.local, self.fp = local, fp

    def poll(self) -> int | None:
        code = self.local.code(self.fp)
        # killed by another of its ranks, which saw it frozen and has written the end of the job
        hung = code is not None and code < 0 and any(self.local.store.glob(f"*/{self.fp[:SHORT]}/work/ranks/*/hang.json"))
        return FAILED if hung else code

    def stop(self) -> None:
        self.local.send("stop", self.fp)

    def kill(self) -> None:
        self.local.send("kill", self.fp)


def zygote(store_root: Path) -> int:
    """A process that has the slow imports behind it and forks one clean child per job.

    Reads `run FP` and `stop FP` lines, answers `exit FP CODE`. When its parent goes away, children are asked to stop.
    """
    import numpy  # noqa: F401
    import pyarrow.parquet  # noqa: F401
    import torch  # noqa: F401

    children: dict[int, str] = {}
    buffer, open_input = b"", True
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    while open_input or children:
        ready = select.select([0] if open_input else [], [], [], 0.02)[0]
        if ready:
            block = os.read(0, 65536)
            open_input = bool(block)
            buffer += block
            if not open_input:
                for pid in children:
                    os.kill(pid, signal.SIGTERM)
        while b"\n" in buffer:
            line, _, buffer = buffer.partition(b"\n")
            verb, fp = line.decode().split()
            if verb == "run":
                pid = os.fork()
                if pid == 0:
                    _child(store_root, fp)
                children[pid] = fp
            else:
                for pid in (p for p, f in children.items() if f == fp):
                    os.kill(pid, signal.SIGTERM if verb == "stop" else signal.SIGKILL)
        while children:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                break
            code = os.waitstatus_to_exitcode(status)
            os.write(1, f"exit {children.pop(pid)} {code}\n".encode())
    return 0


def _child(store_root: Path, fp: str) -> None:
    """The forked child: own session, dies with its parent, never returns."""
    code = FAILED
    try:
        os.setsid()
        die_with_parent()
        signal.signal(signal.SIGTERM, Executing.stop)
        devnull = os.open(os.devnull, os.O_RDWR)
        os.dup2(devnull, 0)
        os.dup2(devnull, 1)
        code = work(store_root, fp, warm=True)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


if __name__ == "__main__":
    sys.exit(zygote(Path(sys.argv[1])))
