"""Options that many verbs share."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from upslope.machine.store import Store

StoreOption = Annotated[Path, typer.Option("--store", envvar="UPSLOPE_STORE", help="Folder that holds all artifacts and runs.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Machine-readable output.")]
DEFAULT_STORE = Path("store")


def open_store(path: Path) -> Store:
    """The store in a folder."""
    from upslope.machine.store import Store

    return Store(path)
