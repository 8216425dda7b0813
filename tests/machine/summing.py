"""A toy stage that several ranks run together, and that can be made to fail in the ways ranks fail."""

from __future__ import annotations

import os
import signal
import time
from typing import Annotated, ClassVar

from upslope.config import Exec
from upslope.machine.context import Context
from upslope.machine.files import write_json
from upslope.machine.stage import Artifact, Need, Paused, Stage


class Sum(Stage):
    """Every step adds (step + 1) * (rank + 1) over all ranks; the state is saved by rank 0 at a stop.

    harm: what happens to rank `victim` at step `at`: "" nothing, "raise", "kill", "freeze", "loop", "pause".
    """

    makes: ClassVar[str] = "Artifact"
    seeded: ClassVar[bool] = True

    steps: int = 3
    ranks: Annotated[int, Exec()] = 2
    pace: Annotated[float, Exec()] = 0.0
    harm: Annotated[str, Exec()] = ""
    victim: Annotated[int, Exec()] = 1
    at: Annotated[int, Exec()] = 1
    start: Annotated[float, Exec()] = 30.0
    wait: Annotated[float, Exec()] = 60.0

    def need(self) -> Need:
        """As many ranks as asked for."""
        return Need(ranks=self.ranks, start=self.start, wait=self.wait)

    def run(self, ctx: Context) -> Artifact:
        """On each rank."""
        import torch
        import torch.distributed as dist

        state = ctx.work / "state.txt"
        done, total = (int(x) for x in state.read_text().split()) if state.exists() else (0, 0)
        dist.barrier()
        ctx.events.emit("note", text=f"from step {done}")
        for step in range(done, self.steps):
            if ctx.stop_now():
                if ctx.rank == 0:
                    state.write_text(f"{step} {total}")
                raise Paused
            if self.harm and (ctx.rank, step) == (self.victim, self.at):
                self._suffer()
            value = torch.tensor([(step + 1.0) * (ctx.rank + 1)])
            with ctx.waiting("all_reduce"):
                dist.all_reduce(value)
            total += int(value.item())
            ctx.events.progress(step + 1, self.steps, "steps")
            time.sleep(self.pace)
        (ctx.out / f"rank-{ctx.rank}.txt").write_text(f"{total} of {ctx.world}")
        if ctx.rank == 0:
            write_json(ctx.out / "sum.json", {"total": total})
        ctx.fact(total=total, threads=torch.get_num_threads(), rank=ctx.rank)
        return Artifact.load(ctx.out)

    def _suffer(self) -> None:
        print("about to suffer", flush=True)
        if self.harm == "raise":
            raise ValueError("bad batch")
        if self.harm == "pause":
            raise Paused
        if self.harm in ("kill", "freeze"):
            os.kill(os.getpid(), signal.SIGKILL if self.harm == "kill" else signal.SIGSTOP)
        while self.harm == "loop":
            time.sleep(0.1)
