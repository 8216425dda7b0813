"""One job: `worker STORE FP` takes the lease, runs the stage, seals the artifact. Every launcher ends here.

Exit codes: 0 ok · 1 failed · 2 usage · 3 refused by a gate · 4 undecided · 75 interrupted, resumable.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import shutil
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any, NamedTuple

from upslope.config import UsageError, dump, explain_validation, find_kind, validated
from upslope.machine.context import Context
from upslope.machine.engines import engine
from upslope.machine.events import Events, process_token, read
from upslope.machine.facts import bits, gathered
from upslope.machine.files import read_json, write_json
from upslope.machine.graph import Node
from upslope.machine.identity import class_code
from upslope.machine.lease import Busy, Lost
from upslope.machine.overseer import write_end
from upslope.machine.privacy import redact
from upslope.machine.process import die_with_parent
from upslope.machine.ranks import Group
from upslope.machine.seats import MEET, RankFailed, Seat, Table
from upslope.machine.stage import FAILED, OK, PAUSED, REFUSED, UNDECIDED, USAGE, Paused, Refused, Stage, Undecided
from upslope.machine.store import Store


def write_job(store: Store, node: Node, nodes: dict[str, Node], workers: int, where: str = "local") -> None:
    """Puts down what `worker STORE FP` needs to know; paths are kept relative to home or the working folder."""
    body = {
        "kind": node.kind,
        "stage": dump(node.stage),
        "workers": workers,
        "engine": where,
        "ranks": node.stage.need().ranks,
        "inputs": {field: [{"stage": n, "kind": nodes[n].kind, "fp": nodes[n].fp} for n in names] for field, names in node.inputs.items()},
    }
    write_json(store.root / "jobs" / f"{node.fp}.json", redact(body))


class Executing:
    """The stage that this process runs now, so that a signal can ask it to stop."""

    context: Context | None = None
    asked = False

    @classmethod
    def stop(cls, *_: Any) -> None:
        """Asks the running stage to save and pause."""
        cls.asked = True
        if cls.context is not None:
            cls.context.stopping = True


def work(store_root: Path | str, fp: str, wait: bool = True, seat: Seat | None = None, warm: bool = False) -> int:
    """Runs the job of one fingerprint to its end; returns an exit code and never raises.

    seat: this process's place where the ranks were started from outside. warm: ranks beside this process are forked from it.
    """
    store = Store(store_root)
    if seat is None:
        return _lead(store, fp, wait, None, None, warm)
    try:
        table = None if seat.meet else Table(seat)
        if seat.rank:
            return _follow(store, fp, seat, table)
        code = _lead(store, fp, wait, seat, table, warm)
    except (RankFailed, UsageError) as e:
        print(e, file=sys.stderr)
        return USAGE if isinstance(e, UsageError) else FAILED
    if table is not None:
        table.say(f"exit {code}")
        table.close()
    return code


def _lead(store: Store, fp: str, wait: bool, seat: Seat | None, table: Table | None, warm: bool) -> int:
    """Rank 0, or the only process: holds the lease, runs the stage, seals the artifact."""
    try:
        job = read_json(store.root / "jobs" / f"{fp}.json")
    except FileNotFoundError:  # another run sealed the same artifact, and took its job away, since ours was written
        folder = store.locate(fp)
        if folder is None or store.manifest(folder) is None:
            raise
        return OK
    folder = store.folder(job["kind"], fp)
    waited = False
    while True:
        try:
            lease = store.lease(job["kind"], fp)
            break
        except Busy as busy:
            if not wait or Executing.asked:
                return PAUSED
            if not waited:
                Events(folder / "events" / f"{process_token()}.jsonl").emit("note", text=f"waiting for another process: {busy}")
                waited = True
            time.sleep(0.2)
    with lease:
        if store.find(job["kind"], fp) is not None:
            return OK
        token = process_token()
        events = Events(folder / "events" / f"{token}.jsonl")
        began = time.time()
        events.emit("start", attempt=1 + sum(r["kind"] == "start" for r in read(folder / "events")))
        end = End(OK)
        try:
            stage = _stage(job)
            need = stage.need()
            context = _context(store, job, stage, folder, events)
            Executing.context = context
            context.stopping = Executing.asked
            if need.ranks == 1 and seat is None:
                artifact, made = stage.run(context), bits()
            else:
                last = None if not warm and seat is None else functools.partial(_last_words, events)
                place = _meeting(folder, token)
                seat = seat or Seat(0, need.ranks, 0, need.ranks, place / "meet")
                seat.check(need, job["kind"])
                start = None if table is not None else functools.partial(_beside, store.root, fp, place, warm)
                with Group(seat, place, need, events, table, start, last) as group:
                    context.join(group)
                    artifact, made = stage.run(context), bits(context.world)
            with events.state("seal"):
                rows = read(folder / "events")
                store.seal(lease, folder, artifact, gathered(job, fp, stage, context, rows, began, made))
        except Exception as e:
            end = ended(e)
        finally:
            Executing.context = None
            with contextlib.suppress(OSError):
                events.emit("end", code=end.code, error=redact(end.error), details=redact(end.details))
        if end.code == OK:
            (store.root / "jobs" / f"{fp}.json").unlink(missing_ok=True)
        return end.code


def _follow(store: Store, fp: str, seat: Seat, table: Table | None) -> int:
    """A rank beside rank 0: the same run without a lease, a seal or a say in the run's events."""
    name = ""
    if table is not None:
        word, _, name = table.hear(lambda: Executing.asked).partition(" ")
        if word == "exit":
            return int(name)
    job = read_json(store.root / "jobs" / f"{fp}.json")
    folder = store.folder(job["kind"], fp)
    place = seat.meet.parent if seat.meet is not None else folder / "work" / "ranks" / name
    events = Events(folder / "events" / "ranks" / f"{seat.rank:05d}-{process_token()}.jsonl")
    end, error = End(OK), None
    try:
        stage = _stage(job)
        need = stage.need()
        seat.check(need, job["kind"])
        context = _context(store, job, stage, folder, events)
        Executing.context = context
        context.stopping = Executing.asked
        with Group(seat, place, need, events, table) as group:
            context.join(group)
            stage.run(context)
    except Exception as e:
        end, error = ended(e), e
    finally:
        Executing.context = None
        with contextlib.suppress(OSError):
            events.emit("end", code=end.code, error=redact(end.error), details=redact(end.details))
            write_end(place, seat.rank, end.code, end.error, isinstance(error, RuntimeError))
    if end.code not in (OK, PAUSED):
        print(end.details or end.error, file=sys.stderr, flush=True)
    # torchrun ends all ranks when one ends with another code: it must not while rank 0 still saves
    return OK if end.code == PAUSED and table is not None else end.code


class End(NamedTuple):
    """How a job ended: exit code, words for people, trace."""

    code: int
    error: str = ""
    details: str = ""


def ended(e: Exception) -> End:
    """The end that an exception means."""
    codes = {UsageError: USAGE, Refused: REFUSED, Undecided: UNDECIDED, Lost: PAUSED}
    for kind, code in codes.items():
        if isinstance(e, kind):
            return End(code, str(e))
    if isinstance(e, Paused):
        return End(PAUSED, "stopped; the same command continues")
    if isinstance(e, RankFailed):
        return End(e.code, str(e), "".join(traceback.format_exception(e)))
    if isinstance(e, MemoryError):
        return End(FAILED, "out of memory\nway out: a smaller micro-batch or shard size, or more memory; finished work is kept")
    details = "".join(traceback.format_exception(e))
    if isinstance(e, OSError) and e.errno in (errno.ENOSPC, errno.EDQUOT):
        return End(FAILED, _disk_full(e), details)
    return End(FAILED, f"{type(e).__name__}: {e}", details)


def _last_words(events: Events, failed: RankFailed) -> None:
    events.emit("end", code=failed.code, error=redact(str(failed)), details="")


def _context(store: Store, job: dict[str, Any], stage: Stage, folder: Path, events: Events) -> Context:
    inputs = {i["stage"]: _opener(store, i["kind"], i["fp"], events) for rows in job["inputs"].values() for i in rows}
    where = engine(job["engine"], job["workers"])
    return Context(folder / "data", folder / "work", stage.seed or 0, inputs, events, store.root / "memo", class_code, engine=where)


def _meeting(folder: Path, token: str) -> Path:
    """A new folder for what the ranks of this attempt tell each other; those of earlier attempts go."""
    place = folder / "work" / "ranks" / token
    shutil.rmtree(place.parent, ignore_errors=True)
    place.mkdir(parents=True)
    return place


def _beside(store_root: Path, fp: str, place: Path, warm: bool, seat: Seat) -> int:
    """Starts a rank beside this process; returns its process id. What it prints goes to its log."""
    log = place / f"log-{seat.rank:05d}.txt"
    if not warm:
        env = {**os.environ, **seat.environment(), MEET: str(seat.meet), "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
        to_log = [(os.POSIX_SPAWN_OPEN, fd, str(log), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644) for fd in (1, 2)]
        argv = [sys.executable, "-m", "upslope.machine.worker", str(store_root), fp]
        return os.posix_spawn(sys.executable, argv, env, file_actions=to_log)
    pid = os.fork()
    if pid:
        return pid
    code = FAILED
    try:
        die_with_parent(signal.SIGKILL)
        out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(out, 1)
        os.dup2(out, 2)
        code = work(store_root, fp, seat=seat)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _stage(job: dict[str, Any]) -> Stage:
    from pydantic import ValidationError

    fields = {k: v for k, v in job["stage"].items() if k != "kind"}
    cls = find_kind(Stage, job["stage"]["kind"])
    try:
        stage = validated(cls, fields)
    except ValidationError as e:
        raise UsageError(explain_validation(e)) from None
    assert isinstance(stage, Stage)
    return stage


def _opener(store: Store, kind: str, fp: str, events: Events) -> Any:
    def open_it() -> Any:
        with events.state("load"):
            return store.open(kind, fp)

    return open_it


def _disk_full(e: OSError) -> str:
    return (
        f"the disk is full ({e.strerror}); nothing is lost\n"
        "way out: free space (`upslope gc` shows what could go), then run the same command again"
    )


# ── entry points ──────────────────────────────────────────────────────────────────────────────────────────────────


def main(argv: list[str]) -> int:
    """`python -m upslope.machine.worker STORE FP`; as one of several ranks where the environment says so (torchrun)."""
    signal.signal(signal.SIGTERM, Executing.stop)
    signal.signal(signal.SIGINT, Executing.stop)
    seat = Seat.from_environment()
    if seat is not None:
        die_with_parent(signal.SIGKILL)
    return work(argv[0], argv[1], seat=seat)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
