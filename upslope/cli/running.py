"""Running a recipe from the command line: progress, Ctrl-C, the report, what to do next."""

from __future__ import annotations

import shlex
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from upslope.cli.options import open_store
from upslope.cli.tables import emit
from upslope.config import UsageError

if TYPE_CHECKING:
    from upslope.machine.store import Store
    from upslope.recipes.overrides import Draft


@contextmanager
def _stopper() -> Iterator[list[int]]:
    """Ctrl-C and SIGTERM ask the run to save and pause; a second one ends it at once."""
    level = [0]

    def handler(*_: Any) -> None:
        level[0] += 1

    before = {s: signal.signal(s, handler) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield level
    finally:
        for signum, old in before.items():
            signal.signal(signum, old)


def parse_budget(text: str | None) -> float | None:
    """Seconds of "90s", "5m", "2h" or a bare number of seconds."""
    if text is None:
        return None
    scale = {"s": 1.0, "m": 60.0, "h": 3600.0}.get(text[-1:])
    try:
        value = float(text[:-1]) * scale if scale else float(text)
    except ValueError:
        value = -1.0
    if not 0 < value < float("inf"):
        raise UsageError(f"--budget {text!r}: write a time such as 90s, 5m or 2h")
    return value


def run_draft(
    draft: Draft,
    store: Path,
    *,
    to: tuple[str, ...] = (),
    rebuild: tuple[str, ...] = (),
    inline: bool = False,
    jobs: int = 1,
    workers: int | None = None,
    engine: str = "local",
    budget: float | None = None,
    launch: str = "local",
    json_: bool = False,
) -> None:
    """Runs or resumes a recipe and exits with its code."""
    from upslope.cli.watch import Lines, seconds
    from upslope.machine import run as machine
    from upslope.machine.graph import resolve
    from upslope.machine.privacy import redact
    from upslope.machine.run import source_digests

    place = open_store(store)
    graph = resolve(draft.recipe, source_digests(place))
    for note in draft.notes:
        print(note, file=sys.stderr)
    if rebuild:
        machine.rebuild(place, graph, rebuild)
    watch = Lines(sys.stderr if json_ else sys.stdout)
    command = redact(shlex.join(["upslope", *(a for a in sys.argv[1:] if a != "--debug")]))
    with _stopper() as level:
        outcome = machine.run(
            draft.recipe,
            place,
            until=to,
            inline=inline,
            jobs=jobs,
            workers=workers,
            where=engine,
            watch=watch,
            stop=lambda: level[0],
            command=command,
            overrides={k: str(v) for k, v in draft.origins.items()},
            budget=budget,
            launch=launch,
        )
    import time

    took = time.monotonic() - watch.began
    report = None
    if outcome.built:
        report = write_report(place, outcome.name)
    if json_:
        emit(
            {
                "run": outcome.name,
                "code": outcome.code,
                "built": outcome.built,
                "reused": outcome.reused,
                "errors": outcome.errors,
                "seconds": took,
                "report": report,
            }
        )
    elif outcome.code == machine.OK:
        if not outcome.built:
            print(f"{len(outcome.reused)} of {len(outcome.reused)} reused, {took:.1f} s")
        else:
            print(f"\n{outcome.name}: done in {seconds(took)}" + (f", report in {report}" if report else ""))
            _next_steps(outcome.name, draft.recipe.stages)
    elif outcome.code == machine.PAUSED:
        print(f"\n{outcome.name}: stopped after {seconds(took)}; the same command continues")
    raise typer.Exit(outcome.code)


def write_report(place: Store, name: str) -> str | None:
    """Writes report.html beside the run; a report that cannot be written never fails the run."""
    try:
        from upslope.report.html import write

        path = place.root / "runs" / name / "report.html"
        write(place.record(name), path)
        return str(path)
    except Exception as e:
        print(f"the report could not be written: {type(e).__name__}: {e}", file=sys.stderr)
        return None


def _next_steps(name: str, stages: Any) -> None:
    if not any(getattr(type(s), "makes", "") in ("Checkpoint", "Release") for s in stages.values()):
        return
    print("\nnext:")
    print("  upslope run finetune --model ./your-hf-folder --data chats.jsonl --reward score.py:score     your model")
    print(f"  upslope chat {name}" + " " * max(1, 78 - len(name)) + "talk to this one")
    print(f"  upslope show {name} --open" + " " * max(1, 71 - len(name)) + "its report")
