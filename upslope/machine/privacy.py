"""What may leave: no secrets, no home or working folder, no host or user name in anything that is written.

Paths and names are replaced (`redact`); a secret in something that a person wrote (a config) is refused (`refuse_secrets`),
because replacing it would change what was asked for.
"""

from __future__ import annotations

import os
import re
import socket
from functools import cache
from pathlib import Path
from typing import Any

from upslope.config import UsageError

_SECRET_NAMES = re.compile(r"(KEY|TOKEN|SECRET|PASSW|CREDENTIAL)", re.I)
_SECRET_SHAPES = re.compile(
    r"\b(sk-[A-Za-z0-9_-]{16,}|gh[pousr]_[A-Za-z0-9]{20,}|AKIA[0-9A-Z]{16}|hf_[A-Za-z0-9]{20,}|xox[abps]-[A-Za-z0-9-]{10,}"
    r"|eyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{10,}|-----BEGIN [A-Z ]*PRIVATE KEY-----)"
)


def _secret_values() -> dict[str, str]:
    return {v: k for k, v in os.environ.items() if _SECRET_NAMES.search(k) and len(v) >= 8 and not v.isdigit()}


@cache
def _names() -> tuple[tuple[str, str], ...]:
    pairs: list[tuple[str, str]] = []
    for path, shown in (
        (os.path.realpath(os.getcwd()), "."),
        (os.getcwd(), "."),
        (str(Path.home()), "~"),
        (os.path.realpath(Path.home()), "~"),
    ):
        if len(path) > 3:
            pairs.append((path, shown))
    return tuple(dict.fromkeys(pairs))


@cache
def _host() -> re.Pattern[str] | None:
    host = os.environ.get("HOSTNAME") or socket.gethostname()
    return re.compile(rf"(?<![\w.-]){re.escape(host)}(?![\w-])") if len(host) >= 4 and host != "localhost" else None


def redact(value: Any) -> Any:
    """The same JSON value with working folder → ".", home → "~", host name → "‹host›", secrets → "‹redacted›"."""
    return _redact(value, tuple(_secret_values()))


def _redact(value: Any, secrets: tuple[str, ...]) -> Any:
    if isinstance(value, str):
        for path, shown in _names():
            value = value.replace(path, shown)
        host = _host()
        if host is not None:
            value = host.sub("‹host›", value)
        for secret in secrets:
            value = value.replace(secret, "‹redacted›")
        return _SECRET_SHAPES.sub("‹redacted›", value)
    if isinstance(value, dict):
        return {_redact(k, secrets): _redact(v, secrets) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_redact(v, secrets) for v in value]
    return value


def secrets_in(value: Any, path: str = "") -> list[str]:
    """Dotted paths of strings that hold a secret: the value of a secret-looking environment variable, or a known shape."""
    if isinstance(value, str):
        known = _secret_values()
        return [path] if any(s in value for s in known) or _SECRET_SHAPES.search(value) else []
    if isinstance(value, dict):
        return [p for k, v in value.items() for p in secrets_in(v, f"{path}.{k}" if path else str(k))]
    if isinstance(value, list | tuple):
        return [p for i, v in enumerate(value) for p in secrets_in(v, f"{path}.{i}")]
    return []


def refuse_secrets(value: Any, where: str) -> None:
    """UsageError if a config holds a secret."""
    found = secrets_in(value)
    if found:
        raise UsageError(
            f"{where}.{found[0]} holds what looks like a secret; it would be written to disk\n"
            'way out: name the environment variable that holds it (for example key_env = "MY_KEY") instead'
        )
