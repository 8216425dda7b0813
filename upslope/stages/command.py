"""command: other people's programs as stages, with cache, lineage, lease, metrics and resume."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from upslope.config import FrozenDict, Input, Source, UsageError
from upslope.machine.context import Context
from upslope.machine.privacy import redact
from upslope.machine.stage import Artifact, Paused, Problem, Stage, artifact_class

_CLASSES = {
    "files": "upslope.machine.stage:Artifact",
    "checkpoint": "upslope.model.checkpoint:Checkpoint",
    "corpus": "upslope.data.artifacts:Corpus",
    "tasks": "upslope.tasks.artifacts:Tasks",
    "chats": "upslope.chat.artifacts:Chats",
    "table": "upslope.evals.artifacts:Table",
}
GRACE = 10.0


class Command(Stage):
    """Runs a program; an edit to anything it declares rebuilds, nothing else does.

    argv: the command; `{out}` `{work}` `{python}` `{in.NAME}` `{file.N}` are replaced by paths. A program that wants to
    survive interruption keeps its state in `{work}`, which it is handed back.
    files: outside files that matter (the script itself too), by content. inputs: other stages by name.
    outputs: paths below `{out}` that must exist at the end. metrics: a JSON-lines file below `{out}` whose numbers become
    events (a `step` field and scalars). returns: what the output folder is read as. revision: bump it to force a rebuild.
    """

    kind: ClassVar[str] = "command"
    makes: ClassVar[str] = "Artifact"

    argv: tuple[str, ...] = Field(min_length=1)
    files: tuple[Source, ...] = ()
    inputs: FrozenDict[str, Input] = FrozenDict()
    outputs: tuple[str, ...] = ()
    metrics: str = ""
    returns: Literal["files", "checkpoint", "corpus", "tasks", "chats", "table"] = "files"
    revision: Annotated[int, Field(ge=0)] = 0

    def produces(self) -> str:
        """Decided by `returns`."""
        return _CLASSES[self.returns].rpartition(":")[2]

    def check(self, inputs: Mapping[str, Any]) -> list[Problem]:
        """Files on the command line that are not declared: an edit to them would go unnoticed."""
        declared = {Path(f.uri).expanduser().resolve() for f in self.files}
        return [
            Problem(
                f"argv.{i}", f"{Path(word).name!r} is a file that is not declared, so an edit to it would go unnoticed; add it to `files`"
            )
            for i, word in enumerate(self.argv)
            if (i > 0 or not Path(word).is_absolute())
            and Path(word).expanduser().is_file()
            and Path(word).expanduser().resolve() not in declared
        ]

    def run(self, ctx: Context) -> Artifact:
        """UsageError if the program fails or leaves out a declared output; its output is in the event folder."""
        argv = [self._fill(word, ctx) for word in self.argv]
        log = (ctx.events.file.parent if ctx.events.file else ctx.work) / "log.txt"
        tail: list[str] = []
        with open(log, "a", encoding="utf-8") as out, ctx.events.state("compute"):
            try:
                child = subprocess.Popen(
                    argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
                )
            except (FileNotFoundError, PermissionError) as e:
                raise UsageError(f"argv.0 = {self.argv[0]!r} cannot be started: {e.strerror}") from None
            assert child.stdout is not None
            os.set_blocking(child.stdout.fileno(), False)
            seen, asked = 0, 0.0
            while True:
                code = child.poll()
                block = (child.stdout.read() or b"").decode("utf-8", "replace")
                out.write(redact(block))
                tail = [*tail, *block.splitlines()][-4:]
                seen = self._tail_metrics(ctx, seen)
                if code is not None:
                    break
                if ctx.stopping and not asked:
                    asked = time.monotonic()
                    os.killpg(child.pid, signal.SIGTERM)
                elif asked and time.monotonic() - asked > GRACE:
                    os.killpg(child.pid, signal.SIGKILL)
                time.sleep(0.05)
        if asked:
            raise Paused
        if code != 0:
            raise UsageError("\n".join([f"{Path(argv[0]).name} ended with exit code {code}; its last lines:", *map(redact, tail)]))
        missing = [o for o in self.outputs if not (ctx.out / o).exists()]
        if missing:
            raise UsageError(f"{Path(argv[0]).name} ended well but did not write {', '.join(missing)}\nway out: write below {{out}}")
        files = sum(p.is_file() for p in ctx.out.rglob("*"))
        ctx.say(f"{Path(argv[0]).name}: {files} files")
        return artifact_class(_CLASSES[self.returns]).load(ctx.out)

    def _fill(self, word: str, ctx: Context) -> str:
        places = {"{out}": ctx.out, "{work}": ctx.work, "{python}": sys.executable}
        places |= {f"{{in.{name}}}": ctx.open(ref, Artifact).path for name, ref in self.inputs.items() if f"{{in.{name}}}" in word}
        places |= {f"{{file.{i}}}": source.path() for i, source in enumerate(self.files)}
        for key, path in places.items():
            word = word.replace(key, str(path))
        return word

    def _tail_metrics(self, ctx: Context, seen: int) -> int:
        path = ctx.out / self.metrics
        if not self.metrics or not path.is_file():
            return seen
        lines = path.read_text(encoding="utf-8", errors="replace").split("\n")[:-1]
        for line in lines[seen:]:
            try:
                row = json.loads(line)
                ctx.events.metrics(int(row.pop("step", 0)), **{k: v for k, v in row.items() if isinstance(v, int | float)})
            except (ValueError, TypeError, AttributeError):
                ctx.events.alarm("a metrics line is not a JSON object", line=line[:80])
        return len(lines)
