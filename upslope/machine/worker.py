"""One job: `worker STORE FP` takes the lease, runs the stage, seals the artifact. Every launcher ends here.

Exit codes: 0 ok · 1 failed · 2 usage · 3 refused by a gate · 4 undecided · 75 interrupted, resumable.
"""

from __future__ import annotations

import contextlib
import errno
import importlib.metadata
import os
import platform
import select
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from upslope.config import UsageError, dump, explain_validation, find_kind, validated
from upslope.machine.context import Context
from upslope.machine.engines import engine
from upslope.machine.events import Events, process_token, read
from upslope.machine.files import read_json, write_json
from upslope.machine.graph import Node
from upslope.machine.identity import advisory, class_code
from upslope.machine.lease import Busy, Lost
from upslope.machine.privacy import redact
from upslope.machine.process import die_with_parent
from upslope.machine.stage import Paused, Refused, Stage, Undecided
from upslope.machine.store import Store

OK, FAILED, USAGE, REFUSED, UNDECIDED, PAUSED = 0, 1, 2, 3, 4, 75


def write_job(store: Store, node: Node, nodes: dict[str, Node], workers: int, where: str = "local") -> None:
    """Puts down what `worker STORE FP` needs to know; paths are kept relative to home or the working folder."""
    body = {
        "kind": node.kind,
        "stage": dump(node.stage),
        "workers": workers,
        "engine": where,
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


def work(store_root: Path | str, fp: str, wait: bool = True) -> int:
    """Runs the job of one fingerprint to its end; returns an exit code and never raises."""
    store = Store(store_root)
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
        events = Events(folder / "events" / f"{process_token()}.jsonl")
        began = time.time()
        events.emit("start", attempt=1 + sum(r["kind"] == "start" for r in read(folder / "events")))
        code, error, details = FAILED, "", ""
        try:
            stage = _stage(job)
            inputs = {i["stage"]: _opener(store, i["kind"], i["fp"], events) for rows in job["inputs"].values() for i in rows}
            context = Context(
                folder / "data",
                folder / "work",
                stage.seed or 0,
                inputs,
                events,
                store.root / "memo",
                class_code,
                engine=engine(job["engine"], job["workers"]),
            )
            Executing.context = context
            context.stopping = Executing.asked
            artifact = stage.run(context)
            with events.state("seal"):
                rows = read(folder / "events")
                store.seal(lease, folder, artifact, _facts(job, fp, stage, context, rows, began))
            code = OK
        except Paused:
            code, error = PAUSED, "stopped; the same command continues"
        except UsageError as e:
            code, error = USAGE, str(e)
        except Refused as e:
            code, error = REFUSED, str(e)
        except Undecided as e:
            code, error = UNDECIDED, str(e)
        except Lost as e:
            code, error = PAUSED, str(e)
        except OSError as e:
            error = _disk_full(e) if e.errno in (errno.ENOSPC, errno.EDQUOT) else f"{type(e).__name__}: {e}"
            details = traceback.format_exc()
        except MemoryError:
            error = "out of memory\nway out: a smaller micro-batch or shard size, or more memory; finished work is kept"
        except Exception as e:
            error, details = f"{type(e).__name__}: {e}", traceback.format_exc()
        finally:
            Executing.context = None
            with contextlib.suppress(OSError):
                events.emit("end", code=code, error=redact(error), details=redact(details))
        if code == OK:
            (store.root / "jobs" / f"{fp}.json").unlink(missing_ok=True)
        return code


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


def _facts(job: dict[str, Any], fp: str, stage: Stage, context: Context, rows: list[dict[str, Any]], began: float) -> dict[str, Any]:
    starts = [r["t"] for r in rows if r["kind"] == "start"]
    # time of earlier attempts counts up to their last sign of life
    earlier = sum(max((r["t"] for r in rows if s <= r["t"] < n), default=s) - s for s, n in zip(starts[:-1], starts[1:]))
    facts = dict(context.facts)
    return {
        "fp": fp,
        "kind": job["kind"],
        "version": type(stage).version,
        "config": _public(dump(stage)),
        "inputs": {field: [i["fp"] for i in items] for field, items in job["inputs"].items()},
        "seed": stage.seed,
        "headline": context.headline,
        "flops": float(facts.pop("flops", 0.0)),
        "licences": sorted(facts.pop("licences", [])),
        "facts": facts,
        "bits": bits(),
        "code": advisory(type(stage).code),
        "seconds": round(time.time() - began + earlier, 2),
        "attempts": len(starts),
    }


def _public(value: Any) -> Any:
    """A config as a manifest shows it: places of outside data and code shrink to their names."""
    if isinstance(value, dict):
        out = {k: _public(v) for k, v in value.items()}
        if isinstance(out.get("uri"), str) and "digest" in out and not out["uri"].startswith("package:"):
            out["uri"] = Path(out["uri"]).name
        if isinstance(out.get("kind"), str) and ".py:" in out["kind"]:
            out["kind"] = out["kind"].rpartition("/")[2]
        return out
    return [_public(v) for v in value] if isinstance(value, list) else value


def bits() -> dict[str, Any]:
    """What the exact bits of a result depend on besides the identity."""
    found: dict[str, Any] = {"python": platform.python_version(), "machine": platform.machine(), "world": 1, "device": "cpu"}
    torch = sys.modules.get("torch")
    if torch is not None:
        found |= {"torch": torch.__version__, "threads": torch.get_num_threads(), "cpu": torch.backends.cpu.get_cpu_capability()}
    for name in ("numpy", "pyarrow", "tokenizers"):
        if name in sys.modules:
            found[name] = importlib.metadata.version(name)
    return found


def _disk_full(e: OSError) -> str:
    return (
        f"the disk is full ({e.strerror}); nothing is lost\n"
        "way out: free space (`upslope gc` shows what could go), then run the same command again"
    )


# ── entry points ──────────────────────────────────────────────────────────────────────────────────────────────────


def main(argv: list[str]) -> int:
    """`python -m upslope.machine.worker STORE FP`, or `--zygote STORE` for the warm parent of the local launcher."""
    if argv[:1] == ["--zygote"]:
        return zygote(Path(argv[1]))
    signal.signal(signal.SIGTERM, Executing.stop)
    signal.signal(signal.SIGINT, Executing.stop)
    return work(argv[0], argv[1])


def zygote(store_root: Path) -> int:
    """A process that has the slow imports behind it and forks one clean child per job.

    Reads `run FP` and `stop FP` lines, answers `exit FP CODE`. When its parent goes away, children are asked to stop.
    """
    import numpy  # noqa: F401
    import pyarrow.parquet  # noqa: F401
    import torch  # noqa: F401

    children: dict[int, str] = {}
    buffer, open_input = b"", True
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    while open_input or children:
        ready = select.select([0] if open_input else [], [], [], 0.02)[0]
        if ready:
            block = os.read(0, 65536)
            open_input = bool(block)
            buffer += block
            if not open_input:
                for pid in children:
                    os.kill(pid, signal.SIGTERM)
        while b"\n" in buffer:
            line, _, buffer = buffer.partition(b"\n")
            verb, fp = line.decode().split()
            if verb == "run":
                pid = os.fork()
                if pid == 0:
                    _child(store_root, fp)
                children[pid] = fp
            else:
                for pid in (p for p, f in children.items() if f == fp):
                    os.kill(pid, signal.SIGTERM if verb == "stop" else signal.SIGKILL)
        while children:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                break
            code = os.waitstatus_to_exitcode(status)
            os.write(1, f"exit {children.pop(pid)} {code}\n".encode())
    return 0


def _child(store_root: Path, fp: str) -> None:
    """The forked child: own session, dies with its parent, never returns."""
    code = FAILED
    try:
        os.setsid()
        die_with_parent()
        signal.signal(signal.SIGTERM, Executing.stop)
        devnull = os.open(os.devnull, os.O_RDWR)
        os.dup2(devnull, 0)
        os.dup2(devnull, 1)
        code = work(store_root, fp)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
