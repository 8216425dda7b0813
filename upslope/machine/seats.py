"""Where a process sits among the ranks of a job, and how ranks that were started from outside hear from rank 0."""

from __future__ import annotations

import datetime
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from upslope.config import UsageError
from upslope.machine.stage import FAILED, PAUSED, Need

MEET = "UPSLOPE_RANKS_MEET"


class RankFailed(Exception):
    """A rank brought the job down. code: the exit code of the job."""

    def __init__(self, text: str, code: int = FAILED) -> None:
        super().__init__(text)
        self.code = code


class Seat(NamedTuple):
    """One process's place among the ranks of a job. local: its number among the `here` processes of its machine.

    meet: the file by which processes of one machine find each other; None: MASTER_ADDR and MASTER_PORT say where.
    """

    rank: int
    world: int
    local: int
    here: int
    meet: Path | None = None

    @classmethod
    def from_environment(cls) -> Seat | None:
        """What RANK, WORLD_SIZE, LOCAL_RANK and LOCAL_WORLD_SIZE say (torchrun sets them); None where there is one process."""
        env = os.environ
        if "RANK" not in env or int(env.get("WORLD_SIZE", "1")) < 2:
            return None
        rank, world, meet = int(env["RANK"]), int(env["WORLD_SIZE"]), env.pop(MEET, "")
        return cls(rank, world, int(env.get("LOCAL_RANK", rank)), int(env.get("LOCAL_WORLD_SIZE", world)), Path(meet) if meet else None)

    def environment(self) -> dict[str, str]:
        """The same as environment variables."""
        known = {"RANK": self.rank, "WORLD_SIZE": self.world, "LOCAL_RANK": self.local, "LOCAL_WORLD_SIZE": self.here}
        return {k: str(v) for k, v in known.items()}

    def check(self, need: Need, kind: str) -> None:
        """UsageError where the stage asks for another number of ranks than were started."""
        if self.world != need.ranks:
            raise UsageError(
                f"{kind} asks for {need.ranks} rank(s), and {self.world} were started\nway out: torchrun --nproc-per-node {need.ranks}"
            )


class Table:
    """Where ranks that were started from outside hear from rank 0 if there is work: a key of torch's store at MASTER_ADDR:MASTER_PORT."""

    def __init__(self, seat: Seat, seconds: float = 60.0) -> None:
        from torch.distributed import PrefixStore, TCPStore

        try:
            host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        except (KeyError, ValueError):
            raise UsageError("RANK is set, but not MASTER_ADDR and MASTER_PORT\nway out: start the ranks by torchrun") from None
        self._serves = seat.rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
        try:
            store = TCPStore(host, port, None, self._serves, datetime.timedelta(seconds=seconds), wait_for_workers=False)
        except Exception as e:
            raise RankFailed(f"rank {seat.rank} does not reach rank 0 at port {port} within {seconds:.0f} s ({type(e).__name__})") from e
        self.store = PrefixStore(f"upslope-{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
        self._others = seat.world - 1

    def say(self, word: str) -> None:
        """Rank 0: "run FOLDER" or "exit CODE"."""
        self.store.set("word", word)

    def hear(self, asked: Callable[[], bool]) -> str:
        """The other ranks: waits for the word, as long as rank 0 waits for its turn."""
        while not self.store.check(["word"]):
            if asked():
                return f"exit {PAUSED}"
            time.sleep(0.2)
        word: str = self.store.get("word").decode()
        self.store.add("heard", 1)
        return word

    def close(self) -> None:
        """Rank 0, where it serves the store: stays until the others have heard the word."""
        until = time.monotonic() + 5.0
        while self._serves and self.store.add("heard", 0) < self._others and time.monotonic() < until:
            time.sleep(0.05)


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def process_state(pid: int) -> str:
    """The state letter of a process (Linux: T stopped, Z ended but not waited for); "" if there is none; "?" if that cannot be known."""
    if sys.platform != "linux":
        return "?"
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except (OSError, IndexError):
        return ""
