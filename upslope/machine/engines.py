"""Engines decide where a unit of map work runs: in processes of this machine, as Ray tasks, or as the tasks of a Slurm array.

All of them call the same `run_unit(step, shard, folder)`; a result is a folder that appears under its name in one rename, so units may run
twice, in any order and anywhere that sees the store, and a lost engine loses only the units in flight.
"""

from __future__ import annotations

import functools
import importlib
import json
import multiprocessing
import os
import shlex
import shutil
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from upslope.config import Config, UsageError, dump, validated
from upslope.machine.files import atomic, read_json, walk, write_json
from upslope.machine.process import pool_worker
from upslope.machine.stage import Paused

SUBMIT = "sbatch --parsable --job-name=upslope --array=0-{last} --output={folder}/%a.log --wrap={command}"


class Unit(NamedTuple):
    """shard: what to read; folder: where the result goes."""

    shard: Path
    folder: Path


class Engine(Protocol):
    """Runs units of one step."""

    def run(self, step: Config, units: Sequence[Unit], work: Path, stopping: Callable[[], bool]) -> Iterator[int]:
        """The numbers of units as they get done, in any order. Raises Paused once `stopping()`, and what a unit raised."""
        ...


def engine(name: str, workers: int) -> Engine:
    """`local`, `ray` (or `ray:ADDRESS`), `slurm` (or `slurm:COMMAND`, which submits an array of jobs)."""
    kind, _, detail = name.partition(":")
    if kind == "local" and not detail:
        return Pool(workers)
    if kind == "ray":
        return RayTasks(detail)
    if kind == "slurm":
        return Array(workers, detail or SUBMIT)
    raise UsageError(f"no engine {name!r}\nway out: local, ray, ray:ADDRESS, slurm, or slurm:COMMAND with {{command}} and {{last}} in it")


def run_unit(step: Any, shard: Path, folder: Path) -> None:
    """One unit of map work: into a temporary folder, then renamed; a folder that exists is whole."""
    if folder.exists():
        return
    temporary = folder.parent / f".tmp-{os.getpid()}-{folder.name}"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        step(shard, temporary)
        for file in walk(temporary):
            with open(file, "rb") as f:
                os.fsync(f.fileno())
        try:
            os.rename(temporary, folder)
        except OSError:  # another process was faster; its bytes are the same
            if not folder.exists():
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


class Pool:
    """Processes forked from this one, so that what it has imported and compiled is there."""

    def __init__(self, workers: int) -> None:
        self.workers = workers

    def run(self, step: Config, units: Sequence[Unit], work: Path, stopping: Callable[[], bool]) -> Iterator[int]:
        """In this process if there is one unit or one worker."""
        if len(units) <= 1 or self.workers <= 1:
            for i, unit in enumerate(units):
                if stopping():
                    raise Paused
                run_unit(step, *unit)
                yield i
            return
        with ProcessPoolExecutor(min(self.workers, len(units)), multiprocessing.get_context("fork"), pool_worker) as pool:
            futures = {pool.submit(run_unit, step, *unit): i for i, unit in enumerate(units)}
            waiting = set(futures)
            while waiting:
                if stopping():
                    pool.shutdown(cancel_futures=True)
                    raise Paused
                finished, waiting = wait(waiting, timeout=0.5, return_when=FIRST_COMPLETED)
                for future in finished:
                    future.result()
                    yield futures[future]


class RayTasks:
    """Ray core tasks; the store must be on a disk that all nodes see. address: "" = a cluster of this machine, started if there is none."""

    def __init__(self, address: str = "") -> None:
        self.address = address

    def run(self, step: Config, units: Sequence[Unit], work: Path, stopping: Callable[[], bool]) -> Iterator[int]:
        """UsageError where Ray is not installed."""
        try:
            ray: Any = importlib.import_module("ray")
        except ModuleNotFoundError:
            raise UsageError("engine 'ray': Ray is not installed\nway out: pip install 'upslope[ray]'") from None
        if not ray.is_initialized():
            ray.init(address=self.address or None, include_dashboard=False, log_to_driver=False, configure_logging=False)
        task = ray.remote(max_retries=3)(_described)
        body = describe(step)
        running = {task.remote(body, str(unit.shard.absolute()), str(unit.folder.absolute())): i for i, unit in enumerate(units)}
        while running:
            if stopping():
                for reference in running:
                    ray.cancel(reference)
                raise Paused
            finished, _ = ray.wait(list(running), num_returns=1, timeout=0.5)
            for reference in finished:
                try:
                    ray.get(reference)
                except ray.exceptions.RayTaskError as e:
                    raise e.cause if isinstance(e.cause, UsageError) else e from None
                yield running.pop(reference)


class Array:
    """An array of batch jobs, each of which takes every n-th unit: `python -m upslope.machine.engines FOLDER INDEX COUNT`.

    submit: the command line that starts the array; {command} is what task i must run, with the index in $SLURM_ARRAY_TASK_ID, {last} the
    last index, {folder} a place for logs. tasks: how many. quiet: seconds without a new result after which missing units are taken as
    lost if the scheduler no longer knows the job (`squeue`).
    """

    def __init__(self, tasks: int, submit: str = SUBMIT, quiet: float = 60.0) -> None:
        self.tasks, self.submit, self.quiet = tasks, submit, quiet

    def run(self, step: Config, units: Sequence[Unit], work: Path, stopping: Callable[[], bool]) -> Iterator[int]:
        """UsageError where the command is not there or refuses, and where units failed or were lost."""
        folder = (work / f"array-{os.getpid()}").absolute()
        shutil.rmtree(folder, ignore_errors=True)
        listed = [[str(u.shard.absolute()), str(u.folder.absolute())] for u in units]
        write_json(folder / "job.json", {"step": describe(step), "units": listed})
        if stopping():
            raise Paused
        tasks = max(1, min(self.tasks, len(units)))
        job = self._start(folder, tasks)
        waiting, last = set(range(len(units))), time.monotonic()
        while waiting:
            if stopping():
                raise Paused  # tasks that run on write results that the next run finds
            done = [i for i in sorted(waiting) if units[i].folder.exists()]
            if done:
                last = time.monotonic()
            waiting.difference_update(done)
            yield from done
            errors = sorted(folder.glob("*.error"))
            if errors and waiting:
                raise UsageError(f"engine 'slurm': task {errors[0].stem} failed: {errors[0].read_text()}")
            if waiting and time.monotonic() - last > self.quiet and not _queued(job):
                lost = ", ".join(map(str, sorted(waiting)[:8]))
                raise UsageError(f"engine 'slurm': job {job} has ended, but units {lost} have no result\nlogs: {folder.name}; run again")
            time.sleep(0.2)

    def _start(self, folder: Path, tasks: int) -> str:
        command = f"{shlex.quote(sys.executable)} -m upslope.machine.engines {shlex.quote(str(folder))} $SLURM_ARRAY_TASK_ID {tasks}"
        said = {"{command}": command, "{last}": str(tasks - 1), "{folder}": str(folder)}
        line = [functools.reduce(lambda text, key: text.replace(key, said[key]), said, part) for part in shlex.split(self.submit)]
        if shutil.which(line[0]) is None:
            raise UsageError(f"engine 'slurm': there is no {line[0]!r} on this machine\nway out: --engine local, or slurm:COMMAND")
        done = subprocess.run(line, capture_output=True, text=True, check=False)
        if done.returncode:
            raise UsageError(f"engine 'slurm': {line[0]} refused: {done.stderr.strip()[:300]}")
        return done.stdout.strip().partition(";")[0]


def _queued(job: str) -> bool:
    """Whether the scheduler still knows a job."""
    if shutil.which("squeue") is None:
        return False
    return bool(subprocess.run(["squeue", "--noheader", "--jobs", job], capture_output=True, text=True, check=False).stdout.strip())


def describe(step: Config) -> str:
    """A step as text that another process can make it from."""
    return json.dumps({"class": f"{type(step).__module__}:{type(step).__qualname__}", "config": dump(step)})


def rebuilt(text: str) -> Config:
    """The step that `describe` described."""
    body = json.loads(text)
    module, _, name = body["class"].partition(":")
    return validated(getattr(importlib.import_module(module), name), body["config"])


def _described(step: str, shard: str, folder: str) -> None:
    run_unit(rebuilt(step), Path(shard), Path(folder))


def main(folder: Path, index: int, count: int) -> int:
    """One task of an array: units index, index + count, …; an error is left beside the job for the run that waits."""
    job = read_json(folder / "job.json")
    try:
        step = rebuilt(job["step"])
        for shard, target in job["units"][index::count]:
            run_unit(step, Path(shard), Path(target))
    except Exception as e:
        with atomic(folder / f"{index}.error") as file:
            file.write_text(str(e) if isinstance(e, UsageError) else traceback.format_exc(limit=-3))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])))
