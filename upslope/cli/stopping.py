"""`upslope stop`: a run that goes on elsewhere saves and pauses."""

from __future__ import annotations

from typing import Annotated

import typer

from upslope.cli.options import DEFAULT_STORE, JsonOption, StoreOption, open_store
from upslope.cli.running import parse_budget
from upslope.cli.tables import emit


def stop(
    run_: Annotated[str, typer.Argument(metavar="RUN", help="Name of a run that goes on in another shell or on another machine.")],
    wait: Annotated[str, typer.Option("--wait", help="How long to wait for its end (90s, 5m).")] = "60s",
    store: StoreOption = DEFAULT_STORE,
    json_: JsonOption = False,
) -> None:
    """Ask a run that goes on elsewhere to save and pause."""
    from upslope.machine import stopping

    done = stopping.stop(open_store(store), run_, parse_budget(wait) or 0.0)
    if json_:
        emit(done._asdict())
    elif done.ended:
        print(f"{done.run}: stopped after {done.seconds:.1f} s; the command that started it continues it")
    else:
        print(f"{done.run}: asked to stop; it had not ended after {done.seconds:.0f} s and will when its step is done")
    raise typer.Exit(0 if done.ended else 1)


def register(app: typer.Typer) -> None:
    """Adds the verb."""
    app.command()(stop)
