"""Saved states: damaged ones are never loaded silently, saving overlaps training, any number of ranks reads any state."""

from __future__ import annotations

import json
import resource
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import upslope.train.resume as resume
from upslope.config import UsageError
from upslope.machine.events import Events
from upslope.machine.events import read as rows
from upslope.train.parts import Damaged, commit, pieces, read, step_of, write_parts
from upslope.train.resume import Saver, latest, save_step


def state(seed: int) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(seed)
    return {
        "model.w": torch.randn(7, 5, generator=g),
        "model.b": torch.randn(3, generator=g).bfloat16(),
        "optim.m": torch.randn(6, 2, 2, generator=g, dtype=torch.float64),
        "optim.steps": torch.tensor(seed),
        "empty": torch.zeros(0, 4),
    }


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(a[n].dtype == b[n].dtype and torch.equal(a[n], b[n]) for n in a)


def save_many(folder: Path, steps: int, limit: int = 100) -> None:
    for k in range(1, steps + 1):
        commit(folder, k, write_parts(folder, k, pieces(state(k)), limit=limit), {"k": k, "third": k / 3})


def test_a_state_comes_back_to_the_bit_with_its_controllers(tmp_path: Path) -> None:
    save_many(tmp_path, 3)
    found = latest(tmp_path)
    assert found is not None
    assert found.step == 3 and same(found.tensors, state(3)) and found.controllers == {"k": 3, "third": 1.0}
    assert len(list(tmp_path.glob("part-3*"))) == 0 and len(list(tmp_path.glob("part-000000003-*"))) >= 3


def damage(folder: Path, rng: np.random.Generator) -> str:
    """Damages files of the newest state, or exchanges two of any state; what was done."""
    files = sorted(folder.iterdir())
    mine = [f for f in files if "-000000003-" in f.name]
    file = mine[rng.integers(len(mine))]
    data = file.read_bytes()
    kind = ("truncate", "flip", "delete", "swap")[rng.integers(4)]
    if kind == "truncate":
        file.write_bytes(data[: rng.integers(len(data))])
    elif kind == "flip":
        raw = bytearray(data)
        raw[rng.integers(len(raw))] ^= 1 << int(rng.integers(8))
        file.write_bytes(raw)
    elif kind == "delete":
        file.unlink()
    else:
        other = [f for f in files if f != file][rng.integers(len(files) - 1)]
        file.write_bytes(other.read_bytes())
        other.write_bytes(data)
    return f"{kind} {file.name}"


def test_100_random_damages_are_never_loaded_silently(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    save_many(tmp_path / "whole", 3)
    for case in range(100):
        folder = Path(shutil.copytree(tmp_path / "whole", tmp_path / str(case)))
        what = damage(folder, rng)
        events = Events(tmp_path / "events" / f"{case}" / "e.jsonl")
        found = latest(folder, events)
        alarms = [e for e in rows(tmp_path / "events" / f"{case}") if e["kind"] == "alarm"]
        assert alarms, what
        assert found is None or found.step == 2, what
        assert found is None or same(found.tensors, state(2)), what
        assert found is not None or what.startswith("swap"), what


def test_a_swap_of_equal_names_inside_the_manifest_is_seen_by_the_tensor_digests(tmp_path: Path) -> None:
    listed = write_parts(tmp_path, 1, pieces({"a": torch.zeros(4), "b": torch.ones(4)}), limit=1)
    listed[0]["file"], listed[1]["file"] = listed[1]["file"], listed[0]["file"]
    with pytest.raises(Damaged):
        read(commit(tmp_path, 1, listed))
    listed = write_parts(tmp_path, 2, pieces({"a": torch.zeros(4)}))
    listed[0]["digest"] = f"{0:016x}"
    with pytest.raises(Damaged, match="'a' is not the tensor"):
        read(commit(tmp_path, 2, listed))


def test_files_of_an_interrupted_save_are_alarmed_and_later_removed(tmp_path: Path) -> None:
    save_many(tmp_path, 1)
    write_parts(tmp_path, 2, pieces(state(9)))
    (tmp_path / ".tmp-1-part-000000002-x").write_bytes(b"torn")
    events = Events(tmp_path / "events" / "e.jsonl")
    found = latest(tmp_path, events)
    assert found is not None and found.step == 1
    assert [e["step"] for e in rows(tmp_path / "events") if e["kind"] == "alarm"] == [2]
    save_step(tmp_path, 2, state(2))
    save_step(tmp_path, 3, state(3))
    named = {r["file"] for m in tmp_path.glob("step-*.json") for r in json.loads(m.read_bytes())["tensors"]}
    assert {p.name for p in tmp_path.iterdir() if p.is_file() and not p.name.startswith("step-")} == named


def test_going_back_removes_what_came_later_and_pins_stay(tmp_path: Path) -> None:
    for k in (1, 2, 3, 4):
        save_step(tmp_path, k, state(k), pinned=(1,))
    assert [step_of(p) for p in sorted(tmp_path.glob("step-*"))] == [1, 3, 4]
    back = latest(tmp_path, at_most=2)
    assert back is not None and back.step == 1
    save_step(tmp_path, 2, state(7), pinned=(1,))
    found = latest(tmp_path)
    assert found is not None and found.step == 2 and same(found.tensors, state(7))
    assert [step_of(p) for p in sorted(tmp_path.glob("step-*"))] == [1, 2]


def test_1_2_4_1_ranks_keep_every_bit(tmp_path: Path) -> None:
    whole = state(3)
    manifest = save_step(tmp_path / "1", 5, whole)
    for world in (2, 4, 3, 1):
        folder = tmp_path / f"to{world}-{manifest.parent.name}"
        listed = []
        for rank in range(world):
            share = read(manifest, rank=rank, world=world).tensors
            mine = pieces(whole, rank, world)
            assert same(share, {p.name: p.data for p in mine})
            listed += write_parts(folder, 5, mine, rank)
        manifest = commit(folder, 5, listed)
        assert same(read(manifest).tensors, whole)
        assert same(read(manifest, ("optim.m",)).tensors, {"optim.m": whole["optim.m"]})


def test_a_rank_that_did_not_save_is_known(tmp_path: Path) -> None:
    listed = [r for rank in (0, 2) for r in write_parts(tmp_path, 1, pieces({"w": torch.randn(9)}, rank, 3), rank)]
    with pytest.raises(Damaged, match="rows 3:6 of 'w' are missing"):
        read(commit(tmp_path, 1, listed))
    with pytest.raises(Damaged, match="does not hold 'x'"):
        read(save_step(tmp_path, 2, {"w": torch.ones(2)}), ("x",))


def test_saving_overlaps_and_holds_the_values_of_its_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gate, saver, live = threading.Event(), Saver(tmp_path), state(1)
    real = resume.write_parts
    monkeypatch.setattr(resume, "write_parts", lambda *a, **k: (gate.wait(10), real(*a, **k))[1])
    controllers = {"list": [1]}
    saver.start(1, live, controllers)
    assert latest(tmp_path) is None
    live["model.w"].zero_()
    controllers["list"].append(2)
    gate.set()
    saver.wait()
    found = latest(tmp_path)
    assert found is not None and same(found.tensors, state(1)) and found.controllers == {"list": [1]}
    buffer = saver._staged["model.w", 0].data.data_ptr()
    saver.start(2, state(2))
    saver.start(3, state(3))
    saver.wait()
    assert saver._staged["model.w", 0].data.data_ptr() == buffer
    found = latest(tmp_path)
    assert found is not None and found.step == 3 and same(found.tensors, state(3))


def test_a_lost_state_takes_no_place_among_those_kept(tmp_path: Path) -> None:
    for k in (1, 2):
        save_step(tmp_path, k, state(k))
    next(tmp_path.glob("part-000000002-*")).unlink()
    save_step(tmp_path, 3, state(3))
    assert [step_of(p) for p in sorted(tmp_path.glob("step-*"))] == [1, 3]
    for k in range(4, 9):
        save_step(tmp_path, k, state(k), keep=5)
    assert [step_of(p) for p in sorted(tmp_path.glob("step-*"))] == [4, 5, 6, 7, 8]


@pytest.mark.slow
def test_killed_at_random_instants_of_saving_the_newest_state_is_whole(tmp_path: Path) -> None:
    code = (
        "import sys, torch\nfrom pathlib import Path\nfrom upslope.train.resume import Saver\n"
        "saver = Saver(Path(sys.argv[1]))\nprint('ready', flush=True)\n"
        "for k in range(1, 10**6): saver.start(k, {f'w{i}': torch.full((50000,), float(k)) for i in range(20)})"
    )
    rng = np.random.default_rng()
    for _ in range(5):
        child = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, cwd=Path(__file__).parents[2])
        assert child.stdout is not None and child.stdout.readline() == b"ready\n"
        time.sleep(0.3 + float(rng.random()) * 0.2)
        child.kill()
        child.wait()
        events = Events(tmp_path / "events" / "e.jsonl")
        found = latest(tmp_path, events)
        assert found is not None and all((t == found.step).all() for t in found.tensors.values())
    assert not [e for e in rows(tmp_path / "events") if e["kind"] == "alarm" and "damaged" in e["what"]]


@contextmanager
def full_disk(limit: int) -> Iterator[None]:
    """No file of this process may grow beyond `limit` bytes: the kernel refuses the write."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize(("limit", "rows_of"), [(1000, 500), (2000, 5), (20, 1)], ids=["part", "manifest", "nothing fits"])
def test_a_full_disk_leaves_the_older_state_and_surfaces_at_the_next_call(tmp_path: Path, limit: int, rows_of: int) -> None:
    saver = Saver(tmp_path)
    saver.start(1, state(1))
    saver.wait()
    before = sorted(p.name for p in tmp_path.iterdir())
    with full_disk(limit):
        saver.start(2, {f"w{i}": torch.randn(rows_of) for i in range(12)})
        assert saver._thread is not None
        saver._thread.join()
    with pytest.raises(UsageError, match=r"after step 2 could not be saved(.|\n)*way out"):
        saver.start(3, state(3))
    assert sorted(p.name for p in tmp_path.iterdir()) == before
    saver.start(3, state(3))
    saver.wait()
    found = latest(tmp_path)
    assert found is not None and found.step == 3
