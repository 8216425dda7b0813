"""Stages on several ranks under torchrun, on one node or, with a command line that says where, on several."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from upslope.config import UsageError
from upslope.machine.events import read
from upslope.machine.files import read_json
from upslope.machine.launcher import Job, Launcher, Local
from upslope.machine.process import die_with_parent
from upslope.machine.seats import cores
from upslope.machine.stage import FAILED, PAUSED
from upslope.machine.store import Store


class Torchrun:
    """Jobs of several ranks by torchrun, or a command that ends in it; the others as `Local` does.

    command: in words, e.g. "torchrun" or "srun torchrun --nnodes 2 --rdzv-backend c10d --rdzv-endpoint node1:29500"; the number of
    processes a node and the worker's command line are added. UsageError where its first word cannot be found.
    """

    def __init__(self, store: Path, command: str = "torchrun") -> None:
        self.store, self._local, self._words = store, Local(store), shlex.split(command)
        self._jobs: list[_Torch] = []

    def start(self, fp: str) -> Job:
        """Starts the command; what it prints goes to a log beside the job's events."""
        job = read_json(self.store / "jobs" / f"{fp}.json")
        if job["ranks"] == 1:
            return self._local.start(fp)
        folder = Store(self.store).folder(job["kind"], fp) / "events"
        started = _Torch([*torchrun(self._words, job["ranks"]), str(self.store), fp], folder, job["ranks"])
        self._jobs.append(started)
        return started

    def close(self) -> None:
        """Jobs under way are asked to stop."""
        for job in self._jobs:
            job.close()
        self._local.close()


def torchrun(words: Sequence[str], ranks: int) -> list[str]:
    """The command line up to the worker's arguments: this Python's torchrun, alone on its port and with all ranks where nothing is said."""
    first = [sys.executable, "-m", "torch.distributed.run"] if words[0] == "torchrun" else [words[0]]
    said = {w.lstrip("-").partition("=")[0].replace("_", "-"): w.partition("=")[2] or after for w, after in zip(words, [*words[1:], ""])}
    nodes = int(said.get("nnodes", "1").rpartition(":")[2])
    count = [] if "nproc-per-node" in said else ["--nproc-per-node", str(max(1, ranks // nodes))]
    alone = [] if nodes > 1 or said.keys() & {"standalone", "rdzv-endpoint", "master-port", "rdzv-backend"} else ["--standalone"]
    return [*first, *words[1:], *alone, *count, "-m", "upslope.machine.worker"]


class _Torch:
    def __init__(self, argv: list[str], folder: Path, ranks: int) -> None:
        self.folder, self._before, self._asked = folder, time.time(), False
        threads = str(max(1, cores() // ranks))
        environment = {"OMP_NUM_THREADS": threads, **os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
        (folder / "ranks").mkdir(parents=True, exist_ok=True)
        with open(folder / "ranks" / "torchrun.log", "wb") as log:
            self._process = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, start_new_session=True, preexec_fn=die_with_parent
            )

    def poll(self) -> int | None:
        """torchrun itself knows only good and bad: the code is that of the end that rank 0 wrote."""
        code = self._process.poll()
        if code is None or code == 0:
            return code
        ends = [int(row["code"]) for row in read(self.folder) if row["kind"] == "end" and row["t"] >= self._before]
        return ends[-1] if ends else PAUSED if self._asked else FAILED

    def stop(self) -> None:
        self._asked = True
        self._process.terminate()

    def kill(self) -> None:
        self._process.kill()  # its workers die with it

    def close(self) -> None:
        if self._process.poll() is None:
            self.stop()
            try:
                self._process.wait(timeout=30)
            except subprocess.TimeoutExpired:
                self.kill()
                self._process.wait()


def launched_by(command: str, store: Path) -> Launcher:
    """`local`, `torchrun`, or a command line that ends in torchrun's options."""
    known_launcher(command)
    return Local(store) if command == "local" else Torchrun(store, command)


def known_launcher(command: str) -> None:
    """UsageError where `launched_by` does not know the command."""
    words = shlex.split(command)
    if words == ["local"]:
        return
    if not any(Path(w).name == "torchrun" for w in words) or (shutil.which(words[0]) is None and words[0] != "torchrun"):
        raise UsageError(f"--launcher {command!r}: no such launcher\nway out: local, torchrun, or a command with torchrun in it")
