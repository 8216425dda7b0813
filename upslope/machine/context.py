"""The context: all that a running stage may touch."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np

from upslope.config import Config, Input, UsageError, canonical_json, dump
from upslope.machine import rng as _rng
from upslope.machine.engines import Engine, Pool, Unit
from upslope.machine.events import Events
from upslope.machine.files import digest_path
from upslope.machine.ranks import Group
from upslope.machine.stage import Artifact, Need, Paused

A = TypeVar("A", bound=Artifact)
T = TypeVar("T")


class Shard(NamedTuple):
    """A unit of map work: a folder or file, and the digest of its content (the memo key)."""

    path: Path
    digest: str

    @classmethod
    def of(cls, path: Path) -> Shard:
        """A shard with its digest computed."""
        return cls(path, digest_path(path))


class ShardStep(Protocol):
    """A Config that turns one shard into files: deterministic, writes only below `out`."""

    def __call__(self, shard: Path, out: Path) -> None: ...


class Actor(Protocol[T]):  # type: ignore[misc]
    """A handle on an engine, grader or environment: local object here, remote where a cluster launcher runs it."""

    @property
    def value(self) -> T: ...


class Local(NamedTuple):
    """The local actor: the object itself."""

    value: Any


class Context:
    """What `Stage.run` gets.

    out: folder for the artifact's files (write them atomically; leftovers of a killed attempt are handed back).
    work: folder for resumable state, removed when the artifact is sealed.
    events: event writer. stopping: true once this process was asked to stop; save and raise `Paused`. rank, world: this process's place
    among those that run the stage; on several ranks ask `stop_now()`, which all of them answer alike, instead of `stopping`.
    """

    def __init__(
        self,
        out: Path,
        work: Path,
        seed: int,
        inputs: Mapping[str, Artifact | Callable[[], Artifact]],
        events: Events | None = None,
        memo: Path | None = None,
        code: Callable[[type], str] | None = None,
        rank: int = 0,
        world: int = 1,
        engine: Engine | None = None,
    ) -> None:
        self.out, self.work, self.seed, self.rank, self.world = out, work, seed, rank, world
        self._group: Group | None = None
        self._engine = engine or Pool(1)
        self.events = events or Events()
        self.stopping = False
        self.facts: dict[str, Any] = {}
        self.headline = ""
        self._inputs, self._memo, self._code = inputs, memo, code
        for folder in (out, work):
            folder.mkdir(parents=True, exist_ok=True)

    @classmethod
    def scratch(cls, folder: Path | str, seed: int = 0, **inputs: Artifact) -> Context:
        """The same, without a store, for notebooks and tests: inputs are given by stage name."""
        folder = Path(folder)
        return cls(folder / "data", folder / "work", seed, inputs, memo=folder / "memo")

    def open(self, ref: Input, kind: type[A]) -> A:
        """The artifact of an input; its files are verified against their digests at first open."""
        value = self._inputs[ref.stage]
        artifact = value if isinstance(value, Artifact) else value()
        if not isinstance(artifact, kind):
            raise UsageError(f"input {ref.stage!r} is a {type(artifact).__name__}; this stage reads a {kind.__name__}")
        return artifact

    def rng(self, stream: str, *index: int | str) -> np.random.Generator:
        """A generator that depends on (stage seed, stream, index) alone."""
        return _rng.rng(self.seed, stream, *index)

    def seed_of(self, stream: str, *index: int | str) -> int:
        """A 63-bit integer seed, for torch and others, of (stage seed, stream, index) alone."""
        return _rng.seed_of(self.seed, stream, *index)

    def fact(self, **values: Any) -> None:
        """Numbers for the manifest, `show` and the report (JSON values; merged)."""
        self.facts.update(values)

    def say(self, headline: str) -> None:
        """The one line that the run prints when this stage ends: a number that a newcomer understands."""
        self.headline = headline

    def check_stop(self) -> None:
        """Raises Paused if the run was asked to stop; for stages whose finished work is already on disk."""
        if self.stop_now():
            raise Paused

    def stop_now(self) -> bool:
        """Whether to save and raise `Paused` here and now: the same answer on all ranks, which must ask equally often."""
        if self._group is not None:
            self._group.step += 1
        return self.agree(self.stopping)

    def agree(self, value: bool) -> bool:
        """True on every rank if it is true on any; on one rank the value itself. All ranks must call it, equally often."""
        return value if self._group is None else self._group.agree(value)

    def waiting(self, at: str) -> AbstractContextManager[None]:
        """Around a collective or anything else that waits for other ranks: names it where a rank does not come (`at`: "all_reduce")."""
        return nullcontext() if self._group is None else self._group.waiting(at)

    def join(self, group: Group) -> None:
        """Makes this the context of one of several ranks."""
        self._group, self.rank, self.world = group, group.rank, group.world

    def map(self, step: Config, shards: Sequence[Shard]) -> Iterator[Path]:
        """Applies a ShardStep to shards, in parallel, memoised per (step, shard); yields result folders in shard order.

        Idempotent and in any order: the result of a shard is a function of the step's config, version and the shard's
        bytes. A killed run loses at most the shards in flight.
        """
        assert self._memo is not None and callable(step)
        identity = {
            "step": f"{type(step).__module__}:{type(step).__qualname__}",
            "version": getattr(type(step), "version", 1),
            "config": dump(step, identity=True, code=self._code),
        }
        key = hashlib.blake2b(canonical_json(identity), digest_size=8).hexdigest()
        self.events.emit("map", step=identity["step"], memo=key)
        folders = [self._memo / key / shard.digest[:24] for shard in shards]
        units = {i: Unit(shards[i].path, folder) for i, folder in enumerate(folders) if not folder.exists()}
        numbers, at, ready = list(units), 0, set(range(len(shards))) - units.keys()
        for place in self._engine.run(step, list(units.values()), self.work, lambda: self.stopping):
            ready.add(numbers[place])
            self.events.progress(len(ready), len(shards), "shards")
            while at in ready:
                yield folders[at]
                at += 1
        yield from folders[at:]

    def actors(self, build: Callable[..., T], n: int, need: Need | None = None) -> list[Local]:
        """n actors; here local objects, built in this process."""
        return [Local(build(i)) for i in range(n)]
