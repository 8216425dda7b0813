"""The inside of the sandbox: a supervisor and a worker. Run as a file by `box.py`; standard library only.

The supervisor enters the namespaces, forks the worker and does nothing but wait: when the request pipe hangs up (the
caller is done, or dead) or the worker ends, it kills every process of the sandbox. The worker gives up its rights, one
layer after the other, and only then touches foreign code. A layer that was asked for and cannot be had ends the
process: it fails closed.
"""

import contextlib
import ctypes
import json
import os
import resource
import select
import signal
import struct
import sys
import traceback
from collections.abc import Callable
from typing import IO, Any

CLONE_NEWNS, CLONE_NEWUTS, CLONE_NEWIPC = 0x00020000, 0x04000000, 0x08000000
CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = 0x10000000, 0x20000000, 0x40000000
PR_SET_KEEPCAPS, PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS, PR_CAP_AMBIENT = 8, 36, 38, 47
CAP_DAC_READ_SEARCH = 2
LANDLOCK_CREATE, LANDLOCK_ADD, LANDLOCK_RESTRICT = 444, 445, 446
READ = 0b1101  # execute, read file, read dir
READ_FILE = 0b0101
ON_FILES = 0b1100000000000111  # the rights that exist for something that is not a directory

libc = ctypes.CDLL(None, use_errno=True)


def check(result: int, what: str) -> int:
    """Raises OSError where a libc call failed."""
    if result < 0:
        raise OSError(ctypes.get_errno(), f"{what}: {os.strerror(ctypes.get_errno())}")
    return result


def landlock_abi() -> int:
    """The kernel's Landlock version; 0 where there is none."""
    return max(0, int(libc.syscall(LANDLOCK_CREATE, None, 0, 1)))


def landlock(read: list[str], write: list[str]) -> None:
    """Allows reading below `read` and everything below `write`; nothing else on the file system, no TCP, no foreign signals.

    Source: Linux kernel documentation, userspace-api/landlock (ABI 1: files; 2: refer; 3: truncate; 4: TCP; 5: device
    ioctl; 6: scopes of abstract sockets and signals).
    """
    abi = landlock_abi()
    if abi < 1:
        raise OSError("landlock: not in this kernel")
    handled = (1 << 13) - 1
    for version, bit in ((2, 13), (3, 14), (5, 15)):
        handled |= (1 << bit) if abi >= version else 0
    attr = struct.pack("QQQ", handled, 3 if abi >= 4 else 0, 3 if abi >= 6 else 0)
    size = 24 if abi >= 6 else 16 if abi >= 4 else 8
    ruleset = check(libc.syscall(LANDLOCK_CREATE, attr, size, 0), "landlock_create_ruleset")
    for paths, rights in ((read, READ), (write, handled)):
        for path in paths:
            try:
                fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
            except OSError:
                continue  # what is not there needs no permission
            allowed = rights & handled & (ON_FILES if not os.path.isdir(path) else ~0)
            check(libc.syscall(LANDLOCK_ADD, ruleset, 1, struct.pack("=Qi", allowed, fd), 0), f"landlock_add_rule {path}")
            os.close(fd)
    check(libc.syscall(LANDLOCK_RESTRICT, ruleset, 0), "landlock_restrict_self")
    os.close(ruleset)


def capabilities(keep: int) -> None:
    """Sets effective, permitted and inheritable capabilities to the mask `keep`."""
    header, data = struct.pack("Ii", 0x20080522, 0), struct.pack("IIIIII", keep, keep, keep, 0, 0, 0)
    check(libc.capset(header, data), "capset")


def become(uid: int, keep: int) -> None:
    """Gives up root for `uid`, for good, keeping only the capabilities of the mask `keep`."""
    check(libc.prctl(PR_SET_KEEPCAPS, 1, 0, 0, 0), "keepcaps")
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)
    capabilities(keep)
    if keep:
        check(libc.prctl(PR_CAP_AMBIENT, 2, CAP_DAC_READ_SEARCH, 0, 0), "ambient capability")


def namespaces(layers: set[str]) -> None:
    """Enters new network, IPC, host-name and process namespaces, by way of a user namespace where not root."""
    flags = CLONE_NEWIPC | CLONE_NEWUTS
    flags |= CLONE_NEWNET if "network" in layers else 0
    flags |= CLONE_NEWPID if "processes" in layers else 0
    uid, gid = os.getuid(), os.getgid()
    user = uid != 0
    check(libc.unshare(flags | (CLONE_NEWUSER if user else 0)), "unshare")
    if user:
        for file, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
            with open(f"/proc/self/{file}", "w") as f:
                f.write(text)


def confine(box: dict[str, Any]) -> None:
    """The worker's way down: limits, then user, then files; after this line foreign code may run."""
    layers, limits = set(box["layers"]), box["limits"]
    os.setsid()
    os.chdir(box["home"])
    os.umask(0o077)
    for name, value in limits.items():
        resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (value, value))
    root = os.getuid() == 0
    if "user" in layers and root:
        become(box["uid"], (1 << CAP_DAC_READ_SEARCH) if box["search"] and "files" in layers else 0)
    elif not root and {"network", "processes"} & layers:
        capabilities(0)
    if sys.platform == "linux":
        check(libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs")
    if "files" in layers:
        landlock(box["read"], box["write"])


def load(box: dict[str, Any]) -> Callable[..., Any]:
    """The function that the box names: from a file, or from an importable module."""
    import importlib
    import importlib.util

    sys.path[:] = box["path"]
    if box["source"].endswith(".py"):
        sys.path.insert(0, os.path.dirname(box["source"]))
        spec = importlib.util.spec_from_file_location("sandboxed", box["source"])
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules["sandboxed"] = module
        spec.loader.exec_module(module)
    else:
        module = importlib.import_module(box["source"])
    function: Callable[..., Any] = getattr(module, box["function"])
    return function


class Record(dict[str, Any]):
    """A JSON object whose fields are also attributes."""

    __getattr__ = dict.__getitem__


def answer(reply: IO[str], **message: Any) -> None:
    """One JSON line to the caller."""
    reply.write(json.dumps(message, default=str) + "\n")
    reply.flush()


def describe(error: BaseException) -> str:
    """An exception in one line, with the place in the foreign file."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename != __file__]
    where = f" (line {frames[-1].lineno} of {os.path.basename(frames[-1].filename)})" if frames else ""
    return f"{type(error).__name__}: {error}{where}"[:500]


def serve(box: dict[str, Any], requests: IO[str], reply: IO[str]) -> int:
    """Loads the function, then answers requests `[args]`, one line each, until the pipe ends."""
    try:
        function = load(box)
    except BaseException as e:
        answer(reply, how="memory" if isinstance(e, MemoryError) else "exception", error=describe(e))
        return 1
    answer(reply, how="ready")
    for line in requests:
        args = json.loads(line, object_hook=Record)
        try:
            value = function(*args)
            if hasattr(value, "_asdict"):
                value = value._asdict()
            text = json.dumps(value)
            sys.stdout.flush()
        except MemoryError:
            answer(reply, how="memory", error="MemoryError: over the memory limit")
        except BaseException as e:
            answer(reply, how="exception", error=describe(e))
        else:
            reply.write(f'{{"how":"ok","value":{text}}}\n')
            reply.flush()
    return 0


def work(box: dict[str, Any], requests: IO[str], reply_fd: int) -> int:
    """The worker after the fork: confine, then serve calls or become `argv`."""
    reply = os.fdopen(reply_fd, "w", encoding="utf-8", newline="\n")
    try:
        confine(box)
    except BaseException as e:
        answer(reply, how="sandbox", error=f"could not confine: {e}")
        return 1
    if box["argv"]:
        answer(reply, how="ready")
        reply.close()
        requests.close()
        try:
            os.execvpe(box["argv"][0], box["argv"], dict(os.environ))
        except OSError as e:
            print(f"{box['argv'][0]}: {e.strerror}", file=sys.stderr)
        return 127
    return serve(box, requests, reply)


def children() -> list[int]:
    """Process ids whose parent is this process."""
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError), open(f"/proc/{entry}/stat") as f:
                if int(f.read().rpartition(")")[2].split()[1]) == os.getpid():
                    found.append(int(entry))
    return found


def end(worker: int) -> int:
    """Kills what is left of the sandbox and gives the worker's exit status."""
    with contextlib.suppress(OSError):
        os.kill(worker, signal.SIGKILL)
    with contextlib.suppress(OSError):
        os.killpg(worker, signal.SIGKILL)
    status = os.waitpid(worker, 0)[1]
    if sys.platform == "linux":  # orphans of the sandbox are ours (subreaper), also those that left the group
        for _ in range(1000):
            left = children()
            if not left:
                break
            for pid in left:
                with contextlib.suppress(OSError):
                    os.kill(pid, signal.SIGKILL)
                with contextlib.suppress(OSError):
                    os.waitpid(pid, 0)
    return status


def supervise(request_fd: int, reply_fd: int) -> int:
    """Reads the box (first request line), forks the worker, waits for its end or for the caller's."""
    line = bytearray()
    while not line.endswith(b"\n"):  # byte by byte: what follows belongs to the worker
        byte = os.read(request_fd, 1)
        if not byte:
            return 0
        line += byte
    box = json.loads(bytes(line))
    layers = set(box["layers"])
    if sys.platform == "linux":
        libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    try:
        if {"network", "processes"} & layers:
            namespaces(layers)
    except OSError as e:
        os.write(reply_fd, json.dumps({"how": "sandbox", "error": f"could not confine: {e}"}).encode() + b"\n")
        return 1
    worker = os.fork()
    if worker == 0:
        os._exit(work(box, os.fdopen(request_fd, "r", encoding="utf-8"), reply_fd))
    os.close(reply_fd)
    poll = select.poll()
    poll.register(request_fd, 0)  # hang-up only: the bytes are the worker's
    pidfd = os.pidfd_open(worker) if hasattr(os, "pidfd_open") else None
    if pidfd is not None:
        poll.register(pidfd, select.POLLIN)
    while not poll.poll(None if pidfd is not None else 20):
        if pidfd is None and os.waitid(os.P_PID, worker, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            break
    status = end(worker)
    return 128 + os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)


def attempt(action: Callable[[], None]) -> str:
    """Runs `action` in a forked process; "" if it worked, else the error."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            action()
        except BaseException as e:
            os.write(write, (str(e) or type(e).__name__).encode()[:300])
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as f:
        error = f.read()
    os.waitpid(pid, 0)
    return error


def try_processes() -> None:
    namespaces({"processes"})
    pid = os.fork()
    if pid == 0:
        os._exit(0 if os.getpid() == 1 else 1)
    if os.waitpid(pid, 0)[1] != 0:
        raise OSError("the first process of the namespace is not process 1")


def try_files(home: str) -> None:
    check(libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs")
    landlock([], [])
    try:
        with open(os.path.join(home, "probe"), "w"):
            raise OSError("landlock did not refuse a write")
    except PermissionError:
        return


def probe(home: str, uid: int) -> dict[str, Any]:
    """What each layer answers when it is tried, each in a process of its own: name → "" or the error."""
    found = {
        "network": attempt(lambda: namespaces({"network"})),
        "processes": attempt(try_processes),
        "files": attempt(lambda: try_files(home)),
    }
    if os.getuid() == 0:
        found["user"] = attempt(lambda: become(uid, 0))
    else:
        found["user"] = found["processes"]  # a user namespace counts processes of its own
    return {**found, "abi": landlock_abi()}


if __name__ == "__main__":
    if sys.argv[1] == "probe":
        print(json.dumps(probe(sys.argv[2], int(sys.argv[3]))))
    else:
        sys.exit(supervise(int(sys.argv[1]), int(sys.argv[2])))
