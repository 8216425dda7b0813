"""Runs: reuse, resume to the same bits after kill -9, stop, failures, damage."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.machine.toy import Number
from upslope.config import UsageError
from upslope.machine import gc
from upslope.machine.compare import compare_runs, why_stage
from upslope.machine.graph import resolve
from upslope.machine.run import OK, PAUSED, plan, rebuild, record, run
from upslope.machine.stage import Recipe
from upslope.machine.store import Store

ROOT = Path(__file__).parents[2]


def toy(wait: float = 0.0, **b: Any) -> Recipe:
    return Recipe(
        name="toy",
        stages={
            "a": Number(value=2, wait=wait),
            "b": Number(parents=("a",), wait=wait, **b),
            "c": Number(parents=("a", "b"), steps=8, wait=wait),
        },
    )


def digests(store: Store, name: str | None = None) -> dict[str, Any]:
    return {s.name: s.manifest["files"] if s.manifest else None for s in record(store, name).stages}


def test_inline_and_warm_workers_give_the_same_bytes_and_then_reuse(tmp_path: Path) -> None:
    one, two = Store(tmp_path / "one"), Store(tmp_path / "two")
    assert run(toy(), one, inline=True).built == ["a", "b", "c"]
    assert run(toy(), two).built == ["a", "b", "c"]
    assert digests(one) == digests(two)
    again = run(toy(), one)
    assert (again.code, again.built, again.reused, again.name) == (OK, [], ["a", "b", "c"], "toy-1")


def test_only_what_lies_downstream_of_a_change_is_built(tmp_path: Path) -> None:
    store = Store(tmp_path)
    run(toy(), store, inline=True)
    outcome = run(toy(value=9), store, inline=True)
    assert (outcome.built, outcome.reused, outcome.name) == (["b", "c"], ["a"], "toy-2")
    seen = compare_runs(store.record("toy-1"), store.record("toy-2"))
    assert seen.first == "b"
    assert "value: 1 → 9" in seen.cause
    back = run(toy(), store, inline=True)
    assert (back.name, back.built) == ("toy-1", [])


SCRIPT = """
import sys
sys.path.insert(0, {root!r})
from tests.machine.test_run import toy
from upslope.machine.run import run
from upslope.machine.store import Store
print("ready", flush=True)
sys.exit(run(toy(wait=0.02), Store({store!r}), inline={inline}).code)
"""


def _spawn(store: Path, inline: bool) -> subprocess.Popen[bytes]:
    code = SCRIPT.format(root=str(ROOT), store=str(store), inline=inline)
    p = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, start_new_session=True)
    assert p.stdout is not None
    p.stdout.readline()
    return p


def test_kill_9_at_random_instants_resumes_to_the_same_bits(tmp_path: Path) -> None:
    whole = Store(tmp_path / "whole")
    run(toy(wait=0.0), whole, inline=True)
    rng = random.Random(0)
    store = tmp_path / "killed"
    for _ in range(6):
        p = _spawn(store, inline=True)
        time.sleep(rng.uniform(0.0, 0.35))
        os.killpg(p.pid, signal.SIGKILL)
        p.wait()
    assert run(toy(), Store(store), inline=True).code == OK
    assert digests(Store(store)) == digests(whole)


def test_killing_only_the_parent_leaves_no_orphan_and_resumes(tmp_path: Path) -> None:
    store = Store(tmp_path)
    p = _spawn(tmp_path, inline=False)
    deadline = time.time() + 30
    while not list(tmp_path.glob("Number/*/work/state.json")) and time.time() < deadline:
        time.sleep(0.01)
    p.kill()
    p.wait()
    assert run(toy(), store, inline=True).code == OK
    assert all(s.state == "sealed" for s in record(store).stages)


def test_stop_saves_and_the_same_command_continues(tmp_path: Path) -> None:
    store = Store(tmp_path / "s")
    calls = iter(range(10**6))
    outcome = run(toy(wait=0.05), store, stop=lambda: int(next(calls) > 8))
    assert outcome.code == PAUSED
    assert run(toy(), store, inline=True).code == OK
    reference = Store(tmp_path / "r")
    run(toy(), reference, inline=True)
    assert digests(store) == digests(reference)


def test_budget_is_a_hard_cap(tmp_path: Path) -> None:
    began = time.monotonic()
    assert run(toy(wait=0.5), Store(tmp_path), budget=0.3).code == PAUSED
    assert time.monotonic() - began < 15


def test_a_failing_stage_keeps_the_rest_and_says_why(tmp_path: Path) -> None:
    store = Store(tmp_path)
    bad = Recipe(
        name="bad", stages={"a": Number(value=2), "b": Number(parents=("a",), steps=-1, inner={"a": 1, "b": 0.0}), "x": Number(value=5)}
    )
    failing = bad.replace(stages={**bad.stages, "b": Broken(parents=("a",))})
    outcome = run(failing, store, inline=True)
    assert outcome.code == 1
    assert outcome.built == ["a", "x"]
    assert "ZeroDivisionError" in outcome.errors["b"]
    assert record(store).stage("b").state == "failed"  # type: ignore[union-attr]


class Broken(Number):
    """Fails."""

    def run(self, ctx: Any) -> Any:
        """Divides by zero."""
        return 1 // 0


@pytest.mark.parametrize("harm", ["truncate", "flip", "delete", "manifest"])
def test_damage_is_never_read_silently_and_is_rebuilt(tmp_path: Path, harm: str) -> None:
    store = Store(tmp_path)
    run(Recipe(name="toy", stages={"a": toy().stages["a"]}), store, inline=True)
    folder = next(f for f, _ in store.artifacts())
    victim = folder / ("manifest.json" if harm == "manifest" else "data/n.txt")
    body = bytearray(victim.read_bytes())
    if harm == "delete":
        victim.unlink()
    else:
        body[len(body) // 2] ^= 1
        victim.write_bytes(b"{" if harm == "manifest" else bytes(body[:-1]) if harm == "truncate" else bytes(body))
    if harm == "manifest":
        with pytest.raises(UsageError, match="damaged"):
            run(toy(), store, inline=True)
    else:
        outcome = run(toy(), store, inline=True)
        assert outcome.code == 2
        assert "damaged artifact" in outcome.errors["b"]
    assert gc.set_damaged_aside(store) == [f"{folder.parent.name}/{folder.name}"]
    assert list((tmp_path / "damaged").iterdir()), "set aside, not deleted"
    assert run(toy(), store, inline=True).code == OK


def test_rebuild_sets_aside(tmp_path: Path) -> None:
    store = Store(tmp_path)
    run(toy(), store, inline=True)
    before = digests(store)
    assert rebuild(store, resolve(toy()), ("b",)) == ["b"]
    assert [s.state for s in plan(resolve(toy()), store)] == ["reuse", "build", "reuse"]
    assert run(toy(), store, inline=True).built == ["b"]
    assert digests(store) == before


def test_why_names_the_field(tmp_path: Path) -> None:
    store = Store(tmp_path)
    run(toy(), store, inline=True)
    why = why_stage(resolve(toy(value=4)), "b", store)
    assert why.state == "absent"
    assert [(c.path, c.left, c.right) for c in why.changes] == [("config.value", 1, 4)]


def test_gc_keeps_what_runs_need_and_is_dry(tmp_path: Path) -> None:
    store = Store(tmp_path)
    run(toy(), store, inline=True)
    run(toy(value=9), store, inline=True)
    assert gc.garbage(store, young=0) == []
    items = gc.garbage(store, forget=("toy-2",), young=0)
    assert len(items) == 3, "b, c of the second run and its record"
    assert len(list(store.artifacts())) == 5, "nothing is touched by looking"
    gc.collect(items)
    assert digests(store, "toy-1")["c"]
    assert store.runs() == ["toy-1"]
    assert run(toy(), store).built == []


def test_gc_property_over_random_graphs(tmp_path: Path) -> None:
    rng = random.Random(1)
    for case in range(6):
        store = Store(tmp_path / str(case))
        for k in range(3):
            stages: dict[str, Number] = {}
            for i in range(rng.randint(1, 6)):
                stages[f"s{i}"] = Number(
                    value=rng.randint(1, 3), steps=1, parents=tuple(sorted(rng.sample(list(stages), min(len(stages), rng.randint(0, 2)))))
                )
            run(Recipe(name=f"r{k}", stages=stages), store, inline=True)
        kept = [n for n in store.runs() if rng.random() < 0.5]
        gone = tuple(n for n in store.runs() if n not in kept)
        gc.collect(gc.garbage(store, forget=gone, young=0))
        for name in kept:
            for stage in store.record(name).stages:
                assert stage.state == "sealed"
                store.open(stage.kind, stage.fp)


def test_two_runs_of_the_same_recipe_at_once_share_the_work(tmp_path: Path) -> None:
    first, second = _spawn(tmp_path, inline=True), _spawn(tmp_path, inline=True)
    assert first.wait(60) == 0
    assert second.wait(60) == 0
    attempts = [s.manifest["attempts"] for s in record(Store(tmp_path)).stages if s.manifest]
    assert attempts == [1, 1, 1]


def test_nothing_written_holds_secret_home_or_host(tmp_path: Path) -> None:
    home = tmp_path / "home" / "jane"
    home.mkdir(parents=True)
    env = {**os.environ, "HOME": str(home), "HOSTNAME": "very-secret-host", "MY_API_KEY": "s3cr3t-value-123456"}
    code = SCRIPT.format(root=str(ROOT), store=str(home / "store"), inline=False)
    script = home / "go.py"
    script.write_text(code.replace("sys.exit(", "import os\nos.environ['X']='1'\nsys.exit("))
    subprocess.run([sys.executable, str(script)], env=env, cwd=home, check=True, capture_output=True)
    written = [p for p in (home / "store").rglob("*") if p.is_file()]
    assert len(written) > 8
    for path in written:
        text = path.read_bytes().decode("utf-8", "replace")
        for planted in (str(home), "very-secret-host", "s3cr3t-value-123456"):
            assert planted not in text, path
    with pytest.raises(UsageError, match="secret"):
        resolve(Recipe(name="toy", stages={"a": Leaky(note="sk-abcdefghijklmnopqrstuvwx")}))


class Leaky(Number):
    """Has a text field."""

    note: str = ""


class Full(Number):
    """Meets a full disk."""

    def run(self, ctx: Any) -> Any:
        """Raises what a write to a full disk raises."""
        import errno

        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_is_said_plainly_and_nothing_is_lost(tmp_path: Path) -> None:
    store = Store(tmp_path)
    outcome = run(Recipe(name="toy", stages={"a": Number(value=2), "b": Full(parents=("a",))}), store, inline=True)
    assert outcome.code == 1
    assert "disk is full" in outcome.errors["b"]
    assert "Traceback" not in outcome.errors["b"]
    assert run(Recipe(name="toy", stages={"a": Number(value=2)}), store, inline=True).reused == ["a"]


def test_a_job_that_another_run_has_sealed_and_cleared_is_done(tmp_path: Path) -> None:
    from upslope.machine.worker import work

    store = Store(tmp_path)
    outcome = run(toy(), store, inline=True)
    assert outcome.code == OK
    sealed = next(s for s in record(store, outcome.name).stages if s.manifest)
    assert not (store.root / "jobs" / f"{sealed.fp}.json").exists()
    assert work(store.root, sealed.fp) == 0
    with pytest.raises(FileNotFoundError):
        work(store.root, "f" * 32)
