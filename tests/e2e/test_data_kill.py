"""The recipe `web` by the command: whatever runs its units, and however often it is killed, every artifact has the same bytes."""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.e2e.conftest import Home
from tests.machine.test_engines import FAKE
from tests.micro import small_crawl
from upslope.machine import run as machine
from upslope.machine.store import Store
from upslope.recipes.load import load

pytestmark = pytest.mark.xdist_group("e2e-data")

WORKERS = 2
Digests = dict[str, str]
Units = dict[str, tuple[tuple[str, int, int], ...]]


@dataclass(frozen=True)
class Inputs:
    """The archive (every 16th record of the crawl), one with some of its pages once more, and what an uninterrupted run makes of them."""

    crawl: Path
    again: Path
    digests: Digests
    units: frozenset[str]
    files: int


def recipe(folder: Path, crawl: Path, again: Path) -> Path:
    """The recipe `web` on both archives, with small shards and a small vocabulary."""
    file = folder / "cut.toml"
    file.write_text(
        f'schema = 1\nextends = "web"\nname = "cut"\n[set]\n"pages.sources" = ["{crawl}", "{again}"]\n'
        '"pages.rows" = 32\n"tokenizer.vocab_size" = 400\n"shards.save_seconds" = 0.1\n'
    )
    return file


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    """Made in this process, one unit after the other."""
    folder = tmp_path_factory.mktemp("whole")
    crawl, again = small_crawl(folder, 16), folder / "again.warc.gz"
    (folder / "few").mkdir()
    small_crawl(folder / "few", 80).rename(again)
    store = Store(folder / "store")
    outcome = machine.run(load(str(recipe(folder, crawl, again)), []).recipe, store, inline=True, workers=1)
    assert outcome.code == 0, outcome.errors
    assert any(r["rule"] == "duplicate" and r["failed"] for r in last_decision(store)["rules"]), "there are copies, so edges matter"
    return Inputs(crawl, again, digests(store), frozenset(finished(store)), count(store))


def last_decision(store: Store) -> dict[str, list[dict[str, int | str]]]:
    corpus = machine.record(store).stage("corpus")
    assert corpus is not None and corpus.manifest is not None
    funnel: dict[str, list[dict[str, int | str]]] = corpus.manifest["facts"]["funnel"]
    return funnel


def home(folder: Path, inputs: Inputs) -> Home:
    """A fresh home; its path is in the environment of every process that works in it."""
    folder.mkdir(parents=True, exist_ok=True)
    recipe(folder, inputs.crawl, inputs.again)
    return Home(folder, {**os.environ, "HOME": str(folder), "OMP_NUM_THREADS": "1", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"})


def store_of(place: Home) -> Store:
    return Store(place.folder / "store")


def digests(store: Store) -> Digests:
    """STAGE/FILE → hash of the bytes on disk, which must be the files that the manifests name."""
    found: Digests = {}
    for stage in machine.record(store).stages:
        assert stage.manifest is not None, f"{stage.name} is {stage.state}"
        on_disk = {p.relative_to(stage.data).as_posix(): p for p in stage.data.rglob("*") if p.is_file()}
        assert on_disk.keys() == stage.manifest["files"].keys()
        found |= {f"{stage.name}/{name}": hashlib.sha256(path.read_bytes()).hexdigest() for name, path in on_disk.items()}
    return found


def root(found: Digests) -> str:
    """One hash of all."""
    return hashlib.sha256("\n".join(f"{name} {found[name]}" for name in sorted(found)).encode()).hexdigest()


def finished(store: Store) -> Units:
    """STEP/SHARD → (file, inode, time of change) of every unit of map work whose result is there."""
    return {
        folder.relative_to(store.root / "memo").as_posix(): tuple(
            (p.name, p.stat().st_ino, p.stat().st_mtime_ns) for p in sorted(folder.iterdir())
        )
        for folder in (store.root / "memo").glob("*/[!.]*")
    }


def torn(store: Store) -> set[Path]:
    """Units that were being made when their process died."""
    return set((store.root / "memo").glob("*/.tmp-*"))


def count(store: Store) -> int:
    """Files of finished and unfinished work; grows in every stage."""
    places = [store.root / "memo", *store.root.glob("*/*/data"), *store.root.glob("*/*/work")]
    return sum(len(files) for place in places for _, _, files in os.walk(place))


def kin(place: Home) -> list[int]:
    """Living processes that were started in a home, orphans too."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if f"\0HOME={place.folder}\0".encode() in b"\0" + entry.read_bytes():
                found.append(int(entry.parent.name))
    return found


def strike(place: Home, files: int, pause: float) -> bool:
    """Starts the run and kills -9 all of it `pause` seconds after `files` new files are in the store; whether it was still running."""
    wanted = count(store_of(place)) + files
    process = place.start("run", "cut.toml", "--workers", str(WORKERS))
    while process.poll() is None and count(store_of(place)) < wanted:
        time.sleep(0.005)
    time.sleep(pause)
    running = process.poll() is None
    while living := kin(place):
        for pid in living:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.002)
    process.communicate()
    return running


def killed(place: Home, inputs: Inputs, kills: int, seed: int) -> None:
    """Kills a run at drawn instants of its life and lets it end; after each kill only units in flight are lost, and never any later."""
    rng, store, landed = random.Random(seed), store_of(place), 0
    known: Units = {}
    for _ in range(kills):
        before = torn(store)
        landed += strike(place, rng.randint(0, inputs.files // (kills + 1)), rng.uniform(0, 0.15))
        now = finished(store)
        assert known.items() <= now.items(), "a finished unit was made again"
        assert len(torn(store) - before) <= WORKERS, "more was lost than was in flight"
        known = now
    assert landed >= 0.8 * kills, f"only {landed} of {kills} kills met a running process"
    place.upslope("run", "cut.toml", "--workers", str(WORKERS))
    last = finished(store)
    assert known.items() <= last.items(), "a finished unit was made again"
    assert (found := digests(store)) == inputs.digests and root(found) == root(inputs.digests)
    assert last.keys() == inputs.units, "the same units, whoever makes them"


def test_two_kills(inputs: Inputs, tmp_path: Path) -> None:
    killed(home(tmp_path / "home", inputs), inputs, kills=2, seed=3)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
def test_twenty_kills(inputs: Inputs, tmp_path: Path, seed: int) -> None:
    killed(home(tmp_path / "home", inputs), inputs, kills=20, seed=seed)


@pytest.mark.slow
@pytest.mark.parametrize(
    "how",
    [("--workers", "1"), ("--workers", "2"), ("--inline",), ("--workers", "2", "--engine", f"slurm:{FAKE}"), ("--engine", "ray")],
    ids=["one worker", "two workers", "inline", "slurm", "ray"],
)
def test_every_engine_makes_the_same_bytes(inputs: Inputs, tmp_path: Path, how: tuple[str, ...]) -> None:
    if "ray" in how:
        pytest.importorskip("ray")
    place = home(tmp_path / "home", inputs)
    place.upslope("run", "cut.toml", *how)
    assert (found := digests(store_of(place))) == inputs.digests and root(found) == root(inputs.digests)
    assert finished(store_of(place)).keys() == inputs.units
