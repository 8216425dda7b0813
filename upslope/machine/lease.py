"""Leases: one owner of a folder at a time, on any POSIX file system, without locks, daemons or shared process tables.

A lease is a file made by exclusive create that holds a random token; its owner touches it (heartbeat). A lease is dead
when its heartbeat stopped for `stale` seconds, or at once when its owner ran on this machine and is gone. Every change to
a lease with token t (takeover or release) happens under the lease `<path>.<t>`, so that of all that see a dead lease
exactly one takes it, and a late one cannot take the successor's.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import socket
import threading
import time
from pathlib import Path
from types import TracebackType

HEARTBEAT = 2.0
STALE = 30.0


class Busy(Exception):
    """The lease is held by somebody alive. owner: token; since: seconds since their last heartbeat."""

    def __init__(self, owner: str, since: float) -> None:
        super().__init__(f"held by {owner[:8]}, last sign of life {since:.0f} s ago")
        self.owner, self.since = owner, since


class Lost(Exception):
    """The lease is no longer ours: we were silent too long and another process took over."""


def _machine() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        boot = ""
    try:
        namespace = os.readlink("/proc/self/ns/pid")
    except OSError:
        namespace = ""
    return hashlib.blake2b(f"{socket.gethostname()}|{boot}|{namespace}".encode(), digest_size=8).hexdigest()


def _born(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[19]
    except (OSError, IndexError):
        return ""


def _alive(pid: int, born: str) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    now = _born(pid)
    return not (born and now) or born == now


class Lease:
    """A held lease; a context manager. Raises Busy if somebody alive holds it."""

    def __init__(self, path: Path, stale: float = STALE, heartbeat: float = HEARTBEAT) -> None:
        self.path, self.stale = path, stale
        self.token = secrets.token_hex(16)
        _acquire(path, self.token, stale)
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        if heartbeat:
            self._thread = threading.Thread(target=self._beat, args=(heartbeat,), daemon=True)
            self._thread.start()

    def _beat(self, every: float) -> None:
        while not self._stop.wait(every):
            try:
                if _read(self.path)[0] == self.token:
                    os.utime(self.path)
            except FileNotFoundError:
                return

    def check(self) -> None:
        """Raises Lost if the lease is no longer ours: call before any step that only an owner may take."""
        try:
            mine = _read(self.path)[0] == self.token
        except FileNotFoundError:
            mine = False
        if not mine:
            raise Lost(f"{self.path.name} was taken over by another process")

    def release(self) -> None:
        """Gives the lease up; harmless if it was lost."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        guard = _guard(self.path, self.token)
        mine = secrets.token_hex(16)
        try:
            _acquire(guard, mine, self.stale)
        except Busy:
            return  # somebody is taking it over: it is theirs now
        try:
            if _read(self.path)[0] == self.token:
                self.path.unlink()
        except FileNotFoundError:
            pass
        finally:
            guard.unlink(missing_ok=True)

    def __enter__(self) -> Lease:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.release()


def holder(path: Path, stale: float = STALE) -> str | None:
    """The token of the living owner, or None if the lease is free or dead."""
    try:
        token, dead, _ = _look(path, stale)
    except FileNotFoundError:
        return None
    return None if dead else token


def _guard(path: Path, token: str) -> Path:
    return path.parent / f"{path.name[:40]}.{token[:16]}"


def _read(path: Path) -> tuple[str, dict[str, object]]:
    body = json.loads(path.read_text() or "{}")
    return str(body.get("token", "")), body


def _look(path: Path, stale: float) -> tuple[str, bool, float]:
    try:
        token, body = _read(path)
    except json.JSONDecodeError:
        token, body = "", {}
    silent = time.time() - path.stat().st_mtime
    dead = silent > stale
    if not dead and token and body.get("machine") == _machine():
        dead = not _alive(int(str(body["pid"])), str(body.get("born", "")))
    return token, dead, silent


def _acquire(path: Path, token: str, stale: float) -> None:
    """Makes the lease file with our token, taking over a dead one; raises Busy. Never two winners."""
    body = json.dumps({"token": token, "machine": _machine(), "pid": os.getpid(), "born": _born(os.getpid())}).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.parent / f".tmp-{token}"
    fresh.write_bytes(body)
    try:
        for _ in range(100):
            if _create(fresh, path):
                return
            try:
                old, dead, silent = _look(path, stale)
            except FileNotFoundError:
                continue
            if not dead:
                raise Busy(old, silent)
            guard, mine = _guard(path, old or "torn"), secrets.token_hex(16)
            _acquire(guard, mine, stale)
            try:
                if _read_token(path) == old:
                    os.replace(fresh, path)
                    return
            finally:
                guard.unlink(missing_ok=True)
        raise Busy("unknown", 0.0)
    finally:
        fresh.unlink(missing_ok=True)


def _create(fresh: Path, path: Path) -> bool:
    """Exclusive create with the content already in place; where there are no hard links, exclusive create and write."""
    try:
        os.link(fresh, path)
        return True
    except FileExistsError:
        return False
    except OSError:
        try:
            with open(path, "xb") as f:
                f.write(fresh.read_bytes())
            return True
        except FileExistsError:
            return False


def _read_token(path: Path) -> str | None:
    try:
        return _read(path)[0]
    except FileNotFoundError:
        return None
    except json.JSONDecodeError:
        return ""
