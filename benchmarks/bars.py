"""What the tables of bars share: `data.py` and `train.py` run benchmarks and proofs, and print what is asked beside what is measured."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).resolve().parent


class Run(NamedTuple):
    """Arguments of a benchmark: when there is time, and when there is not. stored: whether it takes `--store FOLDER`."""

    full: tuple[str, ...] = ()
    quick: tuple[str, ...] = ("--quick",)
    stored: bool = False


class Measured(NamedTuple):
    """text: as shown. good: whether it is what was asked; None where nothing certain was asked."""

    text: str
    good: bool | None = None


class Row(NamedTuple):
    """A bar: what, the benchmark that knows, what is asked, and how it reads in that benchmark's JSON."""

    what: str
    benchmark: str
    asked: str
    read: Callable[[Any], Measured]


def measure(file: str, arguments: Sequence[str]) -> tuple[Any, str]:
    """(the JSON of a benchmark, or None; why there is none)."""
    done = subprocess.run(
        [sys.executable, str(HERE / file), *arguments, "--json"], capture_output=True, text=True, check=False, cwd=HERE.parent
    )
    try:
        if done.returncode == 0:
            return json.loads(done.stdout), ""
    except json.JSONDecodeError:
        pass
    said = [line for line in done.stderr.splitlines() if line.strip()]
    return None, f"exit code {done.returncode}: {said[-1] if said else 'it printed no JSON'}"


def prove(place: str, quick: bool) -> Measured:
    """Whether the tests of a file or folder pass."""
    chosen = [] if quick else ["-m", "slow or not slow"]
    began = time.monotonic()
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *chosen, place]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=HERE.parent)
    return Measured(f"{'pass' if done.returncode == 0 else 'FAIL'} in {time.monotonic() - began:.0f} s", done.returncode == 0)


def main(
    doc: str | None, prefix: str, runs: Mapping[str, Run], rows: Sequence[Row], proofs: Mapping[str, tuple[str, str]], about: Any = None
) -> None:
    """Runs them one after the other, each row printed as soon as it is known. prefix: of the benchmarks' files. about: the conditions."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", default="", help=f"some of {', '.join(runs)}; default: all")
    parser.add_argument("--proofs", action="store_true")
    if any(run.stored for run in runs.values()):
        parser.add_argument("--store", type=Path)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    names = args.only.split(",") if args.only else list(runs)
    if unknown := [n for n in names if n not in runs]:
        parser.error(f"no benchmark {unknown[0]!r}; there are {', '.join(runs)}")
    if about is not None and not args.json:
        print(about)
    widths = max(len(r.what) for r in rows), max(len(r.asked) for r in rows)
    table: list[dict[str, Any]] = []
    raw: dict[str, Any] = {}

    def add(what: str, asked: str, found: Measured) -> None:
        table.append({"what": what, "asked": asked, "measured": found.text, "good": found.good})
        if not args.json:
            mark = {True: "+", False: "-", None: " "}[found.good]
            print(f"{mark} {what:{widths[0]}} {asked:{widths[1]}} {found.text}", flush=True)

    for name in names:
        run = runs[name]
        more = ("--store", str(args.store.resolve())) if run.stored and args.store is not None else ()
        raw[name], trouble = measure(f"{prefix}_{name}.py", [*(run.quick if args.quick else run.full), *more])
        for row in (r for r in rows if r.benchmark == name):
            try:
                found = Measured(f"not measured ({trouble})", False) if trouble else row.read(raw[name])
            except (KeyError, StopIteration, IndexError) as e:
                found = Measured(f"not measured: nothing under {e}")
            add(row.what, row.asked, found)
    for what, (asked, place) in proofs.items() if args.proofs else ():
        found = prove(place, args.quick)
        add(what, asked, found._replace(text=f"{found.text}: {place}"))
    if args.json:
        print(json.dumps({"quick": args.quick, "load": os.getloadavg()[0], "about": about, "table": table, "benchmarks": raw}, indent=1))
