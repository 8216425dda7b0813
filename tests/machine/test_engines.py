"""Wherever units run, the results are the same; what fails is said, and what is lost is lost alone."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path
from typing import ClassVar

import pytest

from upslope.config import Config, UsageError
from upslope.machine.context import Context, Shard
from upslope.machine.engines import Array, Engine, Pool, RayTasks, describe, engine, rebuilt, run_unit
from upslope.machine.stage import Paused

SCRIPT = """
import os, subprocess, sys
for i in range(int(sys.argv[2]) + 1):
    subprocess.Popen(sys.argv[1], shell=True, env={**os.environ, "SLURM_ARRAY_TASK_ID": str(i)})
print("77;cluster")
"""
FAKE = shlex.join([sys.executable, "-c", SCRIPT, "{command}", "{last}"])


class Upper(Config):
    """Upper-cases a file, `times` over; refuses the word `bad`."""

    version: ClassVar[int] = 1

    times: int = 1

    def __call__(self, shard: Path, out: Path) -> None:
        text = shard.read_text()
        if text == "bad":
            raise UsageError("the shard is bad")
        (out / "upper.txt").write_text(text.upper() * self.times)


def shards(folder: Path, *texts: str) -> list[Shard]:
    folder.mkdir(parents=True, exist_ok=True)
    for i, text in enumerate(texts):
        (folder / f"{i}.txt").write_text(text)
    return [Shard.of(folder / f"{i}.txt") for i in range(len(texts))]


def context(folder: Path, where: Engine | None) -> Context:
    return Context(folder / "data", folder / "work", 0, {}, memo=folder / "memo", engine=where)


def mapped(folder: Path, where: Engine, texts: tuple[str, ...]) -> dict[str, str]:
    ctx = context(folder, where)
    found = list(ctx.map(Upper(times=2), shards(folder / "in", *texts)))
    assert [(p / "upper.txt").read_text() for p in found] == [t.upper() * 2 for t in texts]
    return {p.relative_to(folder).as_posix(): (p / "upper.txt").read_text() for p in found}


TEXTS = ("a", "b", "c", "a", "d")


def engines() -> dict[str, Engine]:
    return {"one": Pool(1), "two": Pool(2), "array": Array(2, FAKE)}


def test_every_engine_gives_the_same_folders_in_shard_order(tmp_path: Path) -> None:
    results = [mapped(tmp_path / name, e, TEXTS) for name, e in engines().items()]
    assert results[0] == results[1] == results[2] and len(results[0]) == 4


@pytest.mark.xdist_group("ray")
def test_ray_tasks_give_the_same_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ray = pytest.importorskip("ray")
    monkeypatch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, configure_logging=False)
    try:
        assert mapped(tmp_path / "ray", RayTasks(), TEXTS) == mapped(tmp_path / "one", Pool(1), TEXTS)
        with pytest.raises(UsageError, match="the shard is bad"):
            list(context(tmp_path / "bad", RayTasks()).map(Upper(), shards(tmp_path / "bad" / "in", "a", "bad")))
    finally:
        ray.shutdown()


@pytest.mark.parametrize("name", ["one", "two", "array"])
def test_what_a_unit_raises_comes_out_and_the_rest_is_kept(tmp_path: Path, name: str) -> None:
    ctx = context(tmp_path, engines()[name])
    units = shards(tmp_path / "in", "a", "bad", "b")
    with pytest.raises(UsageError, match="the shard is bad"):
        list(ctx.map(Upper(), units))
    assert not list((tmp_path / "memo").rglob(".tmp-*/upper.txt"))


def test_finished_units_are_not_run_again(tmp_path: Path) -> None:
    first = mapped(tmp_path, Pool(1), TEXTS)
    seen: list[str] = []

    class Nothing:
        def run(self, step: Config, units: list[object], work: Path, stopping: object) -> list[int]:
            seen.extend(map(str, units))
            return []

    assert mapped(tmp_path, Nothing(), TEXTS) == first and not seen  # type: ignore[arg-type]


def test_a_lost_unit_is_named(tmp_path: Path) -> None:
    ctx = context(tmp_path, Array(2, f"{sys.executable} -c print(5)", quiet=0.3))
    with pytest.raises(UsageError, match=r"job 5 has ended, but units 0, 1 have no result"):
        list(ctx.map(Upper(), shards(tmp_path / "in", "a", "b")))


def test_stopping_pauses(tmp_path: Path) -> None:
    for name, e in engines().items():
        ctx = context(tmp_path / name, e)
        ctx.stopping = True
        with pytest.raises(Paused):
            list(ctx.map(Upper(), shards(tmp_path / name / "in", "a", "b")))


def test_names_of_engines() -> None:
    assert isinstance(engine("local", 3), Pool) and isinstance(engine("ray:auto", 1), RayTasks) and isinstance(engine("slurm", 4), Array)
    with pytest.raises(UsageError, match="no engine 'spark'"):
        engine("spark", 1)
    with pytest.raises(UsageError, match="there is no 'sbatch'"):
        next(iter(Array(1).run(Upper(), [], Path(os.devnull).parent / "nowhere-upslope", lambda: False)))
    with pytest.raises(UsageError, match="refused: no account"):
        Array(1, f"{sys.executable} -c \"import sys;sys.exit('no account')\"")._start(Path("."), 1)


def test_a_step_survives_its_description_and_two_racers_leave_one_result(tmp_path: Path) -> None:
    step = rebuilt(describe(Upper(times=3)))
    assert step == Upper(times=3)
    (tmp_path / "in.txt").write_text("x")
    for _ in range(2):
        run_unit(step, tmp_path / "in.txt", tmp_path / "out")
    assert (tmp_path / "out" / "upper.txt").read_text() == "XXX" and not list(tmp_path.glob(".tmp*"))
