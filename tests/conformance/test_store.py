"""Conformance: any Store keeps these promises."""

from __future__ import annotations

from pathlib import Path

import pytest

from upslope.config import UsageError
from upslope.machine.files import write_text
from upslope.machine.lease import Busy, Lost
from upslope.machine.stage import Artifact
from upslope.machine.store import Manifest, Store

FP = "0123456789abcdef0123456789abcdef"
FACTS = {
    "fp": FP, "kind": "toy", "version": 1, "config": {}, "inputs": {}, "seed": None, "headline": "", "facts": {}, "bits": {}, "code": {},
    "seconds": 0.0, "attempts": 1, "flops": 0.0, "licences": [],
}  # fmt: skip


def sealed(store: Store, text: str = "hello") -> Manifest:
    folder = store.folder("toy", FP)
    with store.lease("toy", FP) as lease:
        write_text(folder / "data" / "a.txt", text)
        (folder / "work").mkdir(exist_ok=True)
        return store.seal(lease, folder, Artifact(folder / "data"), FACTS)


def test_absent_partial_sealed(tmp_path: Path) -> None:
    store = Store(tmp_path)
    assert (store.state("toy", FP), store.find("toy", FP)) == ("absent", None)
    with store.lease("toy", FP):
        write_text(store.folder("toy", FP) / "data" / "a.txt", "half")
        assert store.state("toy", FP) == "running"
    assert store.state("toy", FP) == "partial"
    assert (store.folder("toy", FP) / "data" / "a.txt").read_text() == "half", "a partial artifact is handed back as it was left"
    sealed(store)
    assert store.state("toy", FP) == "sealed"
    assert not (store.folder("toy", FP) / "work").exists()


def test_open_verifies(tmp_path: Path) -> None:
    store = Store(tmp_path)
    sealed(store)
    assert (store.open("toy", FP).path / "a.txt").read_text() == "hello"
    (store.folder("toy", FP) / "data" / "a.txt").write_text("hellO")
    with pytest.raises(UsageError, match="other bytes"):
        store.open("toy", FP)


def test_one_owner(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with store.lease("toy", FP), pytest.raises(Busy):
        store.lease("toy", FP)
    store.lease("toy", FP).release()


def test_only_the_owner_seals(tmp_path: Path) -> None:
    store = Store(tmp_path)
    lease = store.lease("toy", FP)
    folder = store.folder("toy", FP)
    write_text(folder / "data" / "a.txt", "x")
    (folder / "lease").unlink()
    with pytest.raises(Lost):
        store.seal(lease, folder, Artifact(folder / "data"), FACTS)
    assert store.find("toy", FP) is None
    lease.release()


def test_leftovers_of_interrupted_writes_are_not_sealed(tmp_path: Path) -> None:
    store = Store(tmp_path)
    leftover = store.folder("toy", FP) / "data" / ".tmp-1-a.txt"
    leftover.parent.mkdir(parents=True)
    leftover.write_text("half")
    assert list(sealed(store).files) == ["a.txt"]
    assert not leftover.exists()


def test_located_by_prefix(tmp_path: Path) -> None:
    store = Store(tmp_path)
    sealed(store)
    assert store.locate(FP[:8]) == store.folder("toy", FP)
    assert store.locate("ffffffff") is None
