"""Files that are either whole or absent: atomic writes, digests of files and folders."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CHUNK = 1 << 20


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yields a temporary path beside `path`; on success it replaces `path` in one rename, on error it is removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".tmp-{os.getpid()}-{path.name}"
    try:
        yield temporary
        with open(temporary, "rb") as f:
            os.fsync(f.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Writes a text file atomically."""
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Writes JSON atomically, with sorted keys, so that equal values give equal bytes."""
    write_text(path, json.dumps(value, sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Reads a JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


def digest_file(path: Path) -> str:
    """blake2b-128 of a file's bytes, in hex."""
    h = hashlib.blake2b(digest_size=16)
    with open(path, "rb") as f:
        while block := f.read(CHUNK):
            h.update(block)
    return h.hexdigest()


def walk(folder: Path) -> list[Path]:
    """All regular files below a folder, sorted by relative path, without leftovers of interrupted writes."""
    return sorted(
        (p for p in folder.rglob("*") if p.is_file() and not p.name.startswith(".tmp-")), key=lambda p: p.relative_to(folder).as_posix()
    )


def digest_path(path: Path) -> str:
    """Content digest of a file, or of a folder (relative names and contents, never paths or times)."""
    if path.is_file():
        return digest_file(path)
    h = hashlib.blake2b(digest_size=16)
    for file in walk(path):
        h.update(f"{file.relative_to(path).as_posix()}\0{digest_file(file)}\n".encode())
    return h.hexdigest()


def link(source: Path, target: Path) -> None:
    """Makes `target` the same bytes as `source` without copying where the file system can (hard link)."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.parent / f".tmp-{os.getpid()}-{target.name}"
    temporary.unlink(missing_ok=True)
    try:
        os.link(source, temporary)
    except OSError:
        shutil.copyfile(source, temporary)
    os.replace(temporary, target)
    temporary.unlink(missing_ok=True)  # a rename onto another name of the same file does nothing


def relative(path: Path, folder: Path) -> str:
    """A path as seen from a folder, with forward slashes."""
    return Path(os.path.relpath(path.absolute(), folder.absolute())).as_posix()


def absolute(folder: Path, path: str) -> Path:
    """The path that `relative` described."""
    return Path(os.path.normpath(folder.absolute() / path))
