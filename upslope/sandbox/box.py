"""Running code that is not ours: a killable process with deadline, limits, no network and one writable folder.

What the machine can promise is found by trying (`probe`), not by reading version numbers; a promise that the caller
requires and the machine cannot keep is a `UsageError` before anything runs.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import os
import select
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Literal, NamedTuple, Self

from upslope.config import Config, Json, UsageError

CHILD = Path(__file__).with_name("child.py")
SYSTEM = ("/usr", "/lib", "/lib64", "/lib32", "/bin", "/sbin", "/etc/ld.so.cache", "/etc/localtime", "/etc/alternatives")
DEVICES = ("/dev/null", "/dev/zero", "/dev/urandom", "/dev/random")
OUTPUT = 64 * 1024
BOOT = 20.0
GRACE = 2.0
_serial = itertools.count()

How = Literal["ok", "exception", "timeout", "memory", "died", "garbage", "sandbox"]


class Limits(Config):
    """What a process may use.

    seconds: wall clock per call (or per program). memory: bytes of address space per process. processes: live processes
    and threads. file_bytes: size of any one file. open_files: descriptors.
    """

    seconds: float = 5.0
    memory: int = 1 << 30
    processes: int = 16
    file_bytes: int = 16 << 20
    open_files: int = 64


class Outcome(NamedTuple):
    """How a call or program ended. value: the function's JSON value, or the exit status. output: start of stdout + stderr."""

    how: How
    value: Json = None
    error: str = ""
    output: str = ""

    @property
    def ok(self) -> bool:
        """Whether it ended by itself and gave a value; an exit status other than 0 is still a value."""
        return self.how == "ok"


class Backend(NamedTuple):
    """One layer of isolation on this machine: whether it works, what it gives or why not, and what would help."""

    name: str
    ok: bool
    why: str
    remedy: str = ""


@lru_cache(maxsize=1)
def _probed() -> dict[str, Any]:
    if sys.platform != "linux":
        absent = f"not on {sys.platform}"
        return {"network": absent, "processes": absent, "files": absent, "user": absent, "abi": 0}
    with tempfile.TemporaryDirectory() as home:
        argv = [sys.executable, "-I", "-S", str(CHILD), "probe", home, str(_fresh_uid())]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=30, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def probe() -> list[Backend]:
    """The layers of isolation, tried one by one on this machine; for `doctor`."""
    found = _probed()
    root = sys.platform == "linux" and os.getuid() == 0
    remedy = "allow user namespaces (sysctl user.max_user_namespaces > 0), or run as root in the container"
    gives = {
        "network": "own network namespace: no address can be reached, not even loopback",
        "processes": "own process namespace: all its processes die with it",
        "files": f"Landlock (version {found['abi']}): writes only below its temporary folder, reads only Python and what is named",
        "user": "own unprivileged user, so that the process limit binds" if root else "own user namespace, so that the process limit binds",
    }
    remedies = {"files": "a kernel ≥ 5.13 with Landlock enabled (lsm=landlock,...)"}
    rows = [Backend("process", True, "child process with wall-clock deadline, memory and file limits, empty environment")]
    for name, text in gives.items():
        error = str(found[name])
        if name == "network" and error and found["abi"] >= 4:
            rows.append(Backend(name, False, f"TCP refused by Landlock, UDP open; no network namespace: {error}", remedy))
        else:
            rows.append(Backend(name, not error, error or text, "" if not error else remedies.get(name, remedy)))
    return rows


def promises() -> frozenset[str]:
    """Names of the layers that work here: of process, network, processes, files, user."""
    return frozenset(b.name for b in probe() if b.ok)


def _fresh_uid() -> int:
    """A user id that nobody has, other for each sandbox of this machine, so that process counts are not shared."""
    return 1_500_000_000 + (os.getpid() % 65536) * 1024 + next(_serial) % 1024


class Box:
    """One confined process. With `function` it answers calls; with `argv` it is that program.

    source: a Python file (its folder may be read and imported from) or an importable module name. read: more paths that
    may be read. path: folders to import from; packages: single packages to import. require: layers (see `promises`)
    without which nothing is run. Use as a context manager.

    Raises UsageError where a required layer does not work here.
    """

    def __init__(
        self,
        *,
        source: str | Path = "",
        function: str = "",
        argv: Sequence[str] = (),
        stdin: bytes = b"",
        limits: Limits | None = None,
        read: Iterable[str | Path] = (),
        path: Iterable[str | Path] = (),
        packages: Iterable[Path] = (),
        require: frozenset[str] = frozenset(),
    ) -> None:
        missing = [b for b in probe() if b.name in require and not b.ok]
        if missing:
            raise UsageError(f"this machine cannot isolate code: {missing[0].name}: {missing[0].why}\nway out: {missing[0].remedy}")
        self.limits = limits or Limits()
        layers = sorted(promises() - {"process"})
        self._top = Path(tempfile.mkdtemp(prefix="upslope-box-"))
        home = self._top / "home"
        home.mkdir()
        uid = _fresh_uid()
        self._top.chmod(0o755)
        if "user" in layers and os.getuid() == 0:
            os.chown(home, uid, uid)
        self.home = home
        extra = [str(Path(p).resolve()) for p in path]
        (self._top / "lib").mkdir()
        for package in packages:  # by links, so that what lies beside a package stays unreadable
            (self._top / "lib" / package.name).symlink_to(package.resolve())
            extra.append(str(package.resolve()))
        paths = [p for p in sys.path if p and _below_prefix(p)] + [str(self._top / "lib"), *(str(Path(p).resolve()) for p in path)]
        source = str(Path(source).resolve()) if str(source).endswith(".py") else str(source)
        readable = [*SYSTEM, *DEVICES, sys.prefix, sys.base_prefix, str(CHILD), str(self._top / "lib"), *map(str, read), *extra]
        if source.endswith(".py"):
            readable.append(str(Path(source).parent))
        roots = [sys.prefix, sys.base_prefix, str(CHILD), str(home), *extra, *([source] if source.endswith(".py") else [])]
        self._box = {
            "search": not all(_open_to_all(Path(p)) for p in roots),  # else the sandbox's user could not read its own code
            "layers": layers,
            "home": str(home),
            "uid": uid,
            "argv": [str(a) for a in argv],
            "source": source,
            "function": function,
            "path": paths,
            "read": readable,
            "write": [str(home), "/dev/null"],
            "limits": self._rlimits(layers, bool(argv)),
        }
        self._output: IO[bytes] = open(self._top / "output", "w+b")  # noqa: SIM115  (closed in `close`)
        (self._top / "stdin").write_bytes(stdin)
        self._buffer = b""
        self._start()

    def _rlimits(self, layers: Sequence[str], program: bool) -> dict[str, int]:
        limits = self.limits
        processes = limits.processes if "user" in layers else limits.processes + _processes_of_user()
        values = {"AS": limits.memory, "NPROC": processes, "FSIZE": limits.file_bytes, "NOFILE": limits.open_files, "CORE": 0}
        if program:
            values["CPU"] = math.ceil(limits.seconds) * limits.processes + 1
        return values

    def _start(self) -> None:
        ours, theirs = os.pipe(), os.pipe()
        environment = {
            "PATH": "/usr/local/bin:/usr/bin:/bin",
            "HOME": str(self.home),
            "TMPDIR": str(self.home),
            "LC_ALL": "C.UTF-8",
            "OMP_NUM_THREADS": "1",
            "OPENBLAS_NUM_THREADS": "1",
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        with open(self._top / "stdin", "rb") as stdin:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", str(CHILD), str(ours[0]), str(theirs[1])],
                stdin=stdin,
                stdout=self._output,
                stderr=self._output,
                cwd=self.home,
                env=environment,
                pass_fds=(ours[0], theirs[1]),
                start_new_session=True,
            )
        os.close(ours[0])
        os.close(theirs[1])
        self._requests, self._replies = ours[1], theirs[0]
        self._write((json.dumps(self._box) + "\n").encode())
        ready = self._reply(max(BOOT, self.limits.seconds))
        self.broken: Outcome | None = None if ready.how == "ok" else ready

    def _write(self, data: bytes) -> bool:
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(self._requests, view) :]
        except BrokenPipeError:
            return False
        return True

    def _reply(self, seconds: float) -> Outcome:
        """The next line of the worker, or how it failed to write one."""
        until = time.monotonic() + seconds
        while b"\n" not in self._buffer:
            ready = select.select([self._replies], [], [], max(0.0, until - time.monotonic()))[0]
            if not ready:
                return Outcome("timeout", error=f"no answer in {seconds:g} s")
            block = os.read(self._replies, 1 << 16)
            if not block:
                return self._died()
            self._buffer += block
            if len(self._buffer) > self.limits.file_bytes:
                return Outcome("garbage", error="the answer is larger than the file limit")
        line, self._buffer = self._buffer.split(b"\n", 1)
        try:
            message = json.loads(line)
            how = message["how"]
        except (ValueError, TypeError, KeyError):
            return Outcome("garbage", error=f"not an answer: {line[:80]!r}")
        if how in ("ready", "ok"):
            return Outcome("ok", message.get("value"))
        return Outcome(how if how in ("exception", "memory", "sandbox") else "garbage", error=str(message.get("error", "")))

    def _died(self) -> Outcome:
        try:
            status = self._process.wait(GRACE)
        except subprocess.TimeoutExpired:
            return Outcome("died", error="it closed its answer pipe")
        return Outcome("died", error=f"killed by signal {status - 128}" if status > 128 else f"it left with status {status}")

    def call(self, *args: Any) -> Outcome:
        """Calls the function with JSON values. After anything but a value or an exception the box is broken for good."""
        if self.broken is not None:
            return self.broken
        if not self._write((json.dumps(args) + "\n").encode()):
            outcome = self._died()
        else:
            outcome = self._reply(self.limits.seconds)
        if outcome.how not in ("ok", "exception", "memory"):
            self.broken = outcome
        return outcome

    def wait(self) -> Outcome:
        """Waits for the program's end: its exit status, or how it was ended."""
        if self.broken is not None:
            return self.broken._replace(output=self.output())
        try:
            status = self._process.wait(self.limits.seconds)
        except subprocess.TimeoutExpired:
            return Outcome("timeout", error=f"not done in {self.limits.seconds:g} s", output=self.output())
        if status > 128:
            return Outcome("died", status, f"killed by signal {status - 128}", self.output())
        return Outcome("ok", status, output=self.output())

    def output(self) -> str:
        """The first 64 KiB of what was printed."""
        self._output.flush()
        with open(self._top / "output", "rb") as f:
            return f.read(OUTPUT).decode("utf-8", "replace")

    def close(self) -> None:
        """Ends every process of the box and removes its folder."""
        for fd in (self._requests, self._replies):
            with contextlib.suppress(OSError):
                os.close(fd)
        try:
            self._process.wait(GRACE)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(OSError):
                os.killpg(self._process.pid, 9)
            self._process.wait()
        self._output.close()
        shutil.rmtree(self._top, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


class Worker:
    """A function in a box that is started again after it had to be killed; for many short calls, as rewards make.

    Same arguments as `Box`. `start` is lazy: the first call pays the start of the interpreter (about 50 ms).
    """

    def __init__(self, **box: Any) -> None:
        self._arguments = box
        self._box: Box | None = None

    def call(self, *args: Any) -> Outcome:
        """One call; a broken box is replaced for the next one."""
        if self._box is None:
            self._box = Box(**self._arguments)
        outcome = self._box.call(*args)
        if self._box.broken is not None:
            self.close()
        return outcome

    def map(self, calls: Iterable[Sequence[Any]]) -> Iterator[Outcome]:
        """Calls in order; a call that kills the worker does not touch the others."""
        for args in calls:
            yield self.call(*args)

    def close(self) -> None:
        """Ends the process; the next call would start another."""
        if self._box is not None:
            self._box.close()
            self._box = None


STRICT = frozenset({"process", "files", "network"})
"""What code that nobody has read must not run without."""


def call(source: str | Path, function: str, *args: Any, limits: Limits | None = None, require: frozenset[str] = STRICT) -> Outcome:
    """Calls `function` of a Python file once, with JSON arguments, confined; never raises for what the code does."""
    with Box(source=source, function=function, limits=limits, require=require) as box:
        outcome = box.call(*args)
        return outcome._replace(output=box.output())


def execute(
    argv: Sequence[str],
    *,
    stdin: bytes = b"",
    limits: Limits | None = None,
    read: Iterable[str | Path] = (),
    require: frozenset[str] = STRICT,
) -> Outcome:
    """Runs a program once, confined; its value is the exit status, its output the start of stdout and stderr."""
    with Box(argv=argv, stdin=stdin, limits=limits, read=read, require=require) as box:
        return box.wait()


def _open_to_all(path: Path) -> bool:
    """Whether any user may reach and read a path."""
    real = path.resolve()
    return bool(real.stat().st_mode & 0o004) and all(p.stat().st_mode & 0o001 for p in real.parents)


def _below_prefix(path: str) -> bool:
    """Whether a path belongs to the Python installation (standard library, site packages)."""
    real = os.path.realpath(path)
    return any(real == root or real.startswith(root + os.sep) for root in (os.path.realpath(sys.prefix), os.path.realpath(sys.base_prefix)))


def _processes_of_user() -> int:
    """Live threads of this user, which the process limit counts where the sandbox has no user of its own."""
    if sys.platform != "linux":
        return 0
    total = 0
    for entry in os.scandir("/proc"):
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and entry.stat().st_uid == os.getuid():
                total += len(os.listdir(f"/proc/{entry.name}/task"))
    return total
