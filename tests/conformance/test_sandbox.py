"""What every back end of the sandbox must do, on this machine, with hostile code."""

from __future__ import annotations

import os
import socket
import sys
import time
from pathlib import Path

import pytest

from upslope.config import UsageError
from upslope.sandbox import box as sandbox
from upslope.sandbox.box import Box, Limits, Outcome, Worker, call, execute, probe, promises

QUICK = Limits(seconds=0.5, memory=256 << 20)


def run(folder: Path, body: str, *args: object, limits: Limits = QUICK) -> Outcome:
    file = folder / "code.py"
    file.write_text(body)
    return call(file, "f", *args, limits=limits, require=frozenset())


def needs(name: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(name not in promises(), reason=f"this machine does not promise {name}")


def test_probe_names_every_layer_with_reason_and_remedy() -> None:
    rows = {b.name: b for b in probe()}
    assert set(rows) == {"process", "network", "processes", "files", "user"}
    assert all(b.why and (b.ok or b.remedy) for b in rows.values())


def test_a_value_comes_back(tmp_path: Path) -> None:
    got = run(tmp_path, "def f(task, x):\n    print('hello')\n    return {'sum': task.a + x}", {"a": 2}, 3)
    assert got.ok
    assert got.value == {"sum": 5}
    assert got.output == "hello\n"


def test_an_endless_loop_is_killed(tmp_path: Path) -> None:
    start = time.monotonic()
    assert run(tmp_path, "def f():\n    while True: pass").how == "timeout"
    assert time.monotonic() - start < 3


def test_an_endless_loop_that_ignores_signals_is_killed(tmp_path: Path) -> None:
    code = """
import signal
def f():
    for s in range(1, 32):
        try:
            signal.signal(s, signal.SIG_IGN)
        except OSError:
            pass
    while True:
        pass
"""
    assert run(tmp_path, code).how == "timeout"


def test_a_memory_bomb_is_refused(tmp_path: Path) -> None:
    got = run(tmp_path, "def f():\n    x = b'x'\n    while True: x += x", limits=Limits(seconds=5, memory=256 << 20))
    assert got.how == "memory"


@needs("user")
def test_a_fork_bomb_is_limited_and_leaves_nothing(tmp_path: Path) -> None:
    code = """
import os, time
def f():
    n = 0
    try:
        while n < 500:
            if os.fork() == 0:
                time.sleep(30)
                os._exit(0)
            n += 1
    except BlockingIOError:
        return n
    return n
"""
    (tmp_path / "code.py").write_text(code)
    with Box(source=tmp_path / "code.py", function="f", limits=Limits(seconds=5, processes=12)) as box:
        got = box.call()
        user = box.home.stat().st_uid
    assert got.ok
    assert isinstance(got.value, int)
    assert got.value <= 12
    if user != os.getuid():
        assert not [p for p in os.listdir("/proc") if p.isdigit() and os.stat(f"/proc/{p}").st_uid == user]


def test_a_daemon_dies_with_the_sandbox(tmp_path: Path) -> None:
    code = """
import os, time
def f():
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            time.sleep(0.7)
            open('alive', 'w').close()
        os._exit(0)
    return os.getcwd()
"""
    file = tmp_path / "code.py"
    file.write_text(code)
    with Box(source=file, function="f", limits=QUICK) as box:
        assert box.call().ok
        home = box.home
    time.sleep(0.9)
    assert not home.exists()


@needs("files")
def test_writes_outside_are_refused_and_reads_too(tmp_path: Path) -> None:
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    secret = tmp_path / "open" / "secret"
    secret.write_text("s")
    (tmp_path / "code").mkdir()
    code = """
def f(target, secret):
    open('inside', 'w').write('ok')
    seen = []
    tries = [(target, 'w'), (secret, 'r'), (secret, 'a'), ('/proc/self/environ', 'r'), ('/etc/passwd', 'r'), ('/tmp/upslope-escape', 'w')]
    for path, mode in tries:
        try:
            open(path, mode).close()
            seen.append([path, mode])
        except OSError:
            pass
    import os
    try:
        os.symlink(secret, 'link')
        seen.append(['through a link', open('link').read()])
    except OSError:
        pass
    return seen
"""
    got = run(tmp_path / "code", code, str(tmp_path / "open" / "new"), str(secret))
    assert got.value == []
    assert secret.read_text() == "s"


@needs("network")
def test_no_network_not_even_loopback(tmp_path: Path) -> None:
    server = socket.socket()
    server.bind(("127.0.0.1", 0))
    server.listen()
    code = """
import socket
def f(port):
    seen = []
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
        s = socket.socket(socket.AF_INET, kind)
        try:
            s.connect(('127.0.0.1', port))
            s.send(b'x')
            seen.append(int(kind))
        except OSError:
            pass
    return seen
"""
    got = run(tmp_path, code, server.getsockname()[1])
    server.close()
    assert got.value == []


def test_exceptions_and_exits_are_reported(tmp_path: Path) -> None:
    assert "ZeroDivisionError" in run(tmp_path, "def f():\n    return 1 / 0").error
    assert "line 2 of code.py" in run(tmp_path, "def f():\n    return 1 / 0").error
    assert run(tmp_path, "import sys\ndef f():\n    sys.exit(0)").how == "exception"
    assert run(tmp_path, "import os\ndef f():\n    os._exit(0)").how == "died"
    assert run(tmp_path, "import ctypes\ndef f():\n    ctypes.string_at(0)").how == "died"
    assert run(tmp_path, "this is no python").how == "exception"
    assert run(tmp_path, "x = 1").how == "exception"
    assert run(tmp_path, "def f():\n    return {1, 2}").how == "exception"


def test_garbage_on_the_answer_pipe_is_not_an_answer(tmp_path: Path) -> None:
    code = """
import os
def f():
    for fd in range(3, 20):
        try: os.write(fd, b'{"nothing": 1}\\n')
        except OSError: pass
    return 1
"""
    assert run(tmp_path, code).how == "garbage"


def test_the_environment_is_empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_SECRET", "1")
    got = run(tmp_path, "import os\ndef f():\n    return sorted(os.environ)")
    assert isinstance(got.value, list)
    assert "A_SECRET" not in got.value
    assert "LC_ALL" in got.value


def test_big_files_and_big_outputs_are_cut(tmp_path: Path) -> None:
    limits = Limits(seconds=5, file_bytes=1 << 20)
    assert run(tmp_path, "def f():\n    open('big', 'wb').write(b'x' * (2 << 20))", limits=limits).how == "exception"
    got = run(tmp_path, "def f():\n    return 'x' * (2 << 20)", limits=limits)
    assert got.how == "garbage"


def test_a_program_runs_with_input_and_exit_status() -> None:
    got = execute([sys.executable, "-I", "-c", "import sys; print(sys.stdin.read()[::-1]); sys.exit(3)"], stdin=b"abc", require=frozenset())
    assert (got.how, got.value, got.output) == ("ok", 3, "cba\n")
    assert execute([sys.executable, "-I", "-c", "while True: pass"], limits=Limits(seconds=0.3), require=frozenset()).how == "timeout"
    assert execute(["no-such-program"], require=frozenset()).value == 127


def test_a_worker_survives_what_kills_one_call(tmp_path: Path) -> None:
    file = tmp_path / "code.py"
    file.write_text("import os\ndef f(x):\n    if x == 1:\n        os._exit(1)\n    if x == 2:\n        while True: pass\n    return x")
    worker = Worker(source=file, function="f", limits=QUICK)
    hows = [o.how for o in worker.map([(0,), (1,), (2,), (3,)])]
    worker.close()
    assert hows == ["ok", "died", "timeout", "ok"]


def test_a_promise_that_cannot_be_kept_refuses_to_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "_probed", lambda: {"network": "no", "processes": "no", "files": "no", "user": "no", "abi": 0})
    (tmp_path / "code.py").write_text("def f():\n    return 1")
    with pytest.raises(UsageError, match="cannot isolate code"):
        call(tmp_path / "code.py", "f")
    assert run(tmp_path, "def f():\n    return 1").value == 1


def test_without_any_layer_orphans_still_die(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "_probed", lambda: {"network": "no", "processes": "no", "files": "no", "user": "no", "abi": 0})
    test_a_daemon_dies_with_the_sandbox(tmp_path)


def test_a_layer_that_fails_inside_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "_probed", lambda: {"network": "no", "processes": "no", "files": "", "user": "no", "abi": 1})
    monkeypatch.setattr(sandbox, "SYSTEM", ())
    real = sandbox.CHILD.read_text().replace("abi = landlock_abi()", "abi = 0")
    (tmp_path / "child.py").write_text(real)
    monkeypatch.setattr(sandbox, "CHILD", tmp_path / "child.py")
    got = run(tmp_path, "def f():\n    return 1")
    assert got.how == "sandbox"
