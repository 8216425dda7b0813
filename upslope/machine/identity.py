"""Identity: what a result depends on, as one fingerprint.

fp = blake2b-128(canonical JSON {kind, version, config, inputs}). Package code counts by its integer `version`; code from
outside counts by the syntax tree of its file and of every local module that it imports, so that an edit rebuilds and a
comment does not.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import inspect
import sys
import sysconfig
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from upslope.config import Source, UsageError, canonical_json, dump, outside, tag
from upslope.machine.files import digest_path
from upslope.machine.stage import Stage

Fp = str
SHORT = 12


def identity(stage: Stage, inputs: Mapping[str, tuple[Fp, ...]]) -> Fp:
    """The fingerprint of a stage whose inputs have these fingerprints, in hex (32 digits)."""
    cls = type(stage)
    body = {
        "kind": class_code(cls) if outside(cls) else tag(stage),
        "version": cls.version,
        "config": dump(stage, identity=True, code=class_code),
        "inputs": {field: list(fps) for field, fps in inputs.items()},
    }
    return hashlib.blake2b(canonical_json(body), digest_size=16).hexdigest()


def class_code(cls: type) -> str:
    """How a class from outside the package stands in an identity: its name and the digest of its code."""
    origin = vars(cls).get("origin", cls)
    name = getattr(origin, "__qualname__", repr(origin))
    try:
        file = inspect.getsourcefile(origin)
    except TypeError:
        file = None
    if file is None or not Path(file).is_file():
        try:
            source = inspect.getsource(origin)
        except (OSError, TypeError):
            raise UsageError(f"the source of {name!r} cannot be read, so its identity is unknown\nway out: put it in a file") from None
        digest = _tree(source, name)
        return f"{name}@{hashlib.blake2b(digest.encode(), digest_size=16).hexdigest()}"
    return f"{name}@{file_code(Path(file).resolve())}"


def file_code(file: Path) -> str:
    """Digest of the syntax trees of a Python file and of the local modules it imports, transitively."""
    seen: dict[Path, str] = {}
    todo = [file]
    while todo:
        path = todo.pop()
        if path in seen:
            continue
        source = path.read_text(encoding="utf-8")
        seen[path] = _tree(source, path.name)
        todo += _local_imports(ast.parse(source), path)
    # sorted by content, not by path: the same code in another folder is the same code
    return hashlib.blake2b("\n".join(sorted(seen.values())).encode(), digest_size=16).hexdigest()


def _tree(source: str, name: str) -> str:
    try:
        return ast.dump(ast.parse(source))
    except SyntaxError as e:
        raise UsageError(f"{name} line {e.lineno}: {e.msg}") from None


def _local_imports(tree: ast.AST, file: Path) -> list[Path]:
    names: list[tuple[str, Path | None]] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [(alias.name, None) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = file.parent
            for _ in range(node.level - 1):
                base = base.parent
            anchor = base if node.level else None
            module = node.module or ""
            names += [(module, anchor)] if module else []
            names += [(f"{module}.{a.name}" if module else a.name, anchor) for a in node.names]
    found = []
    for name, anchor in names:
        path = _module_file(name, anchor or file.parent)
        if path is None and anchor is None:
            path = _spec_file(name)
        if path is not None and path != file and not _installed(path):
            found.append(path)
    return found


def _module_file(name: str, base: Path) -> Path | None:
    stem = base.joinpath(*name.split("."))
    for candidate in (stem.with_suffix(".py"), stem / "__init__.py"):
        if candidate.is_file():
            return candidate.resolve()
    return None


def _spec_file(name: str) -> Path | None:
    if name.split(".")[0] in sys.stdlib_module_names or name.split(".")[0] == "upslope":
        return None
    try:
        spec = importlib.util.find_spec(name.split(".")[0])
    except (ImportError, ValueError):
        return None
    if spec is None or not spec.origin or not spec.origin.endswith(".py") or _installed(Path(spec.origin)):
        return None
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError, AttributeError):
        return None
    return Path(spec.origin).resolve() if spec and spec.origin and spec.origin.endswith(".py") else None


@cache
def _roots() -> tuple[Path, ...]:
    here = Path(__file__).resolve().parents[1]
    return (here, *(Path(sysconfig.get_path(k)).resolve() for k in ("stdlib", "platstdlib", "purelib", "platlib")))


def _installed(path: Path) -> bool:
    return any(path.resolve().is_relative_to(root) for root in _roots())


def pin_sources(stage: Stage, cached: Callable[[Path], str] = digest_path) -> Stage:
    """The stage with the content digest of every outside source filled in; a digest given by the user is checked."""

    def pin(value: Any) -> Any:
        if isinstance(value, Source):
            digest = cached(value.path())
            if value.digest is not None and value.digest != digest:
                raise UsageError(
                    f"source {value.uri!r} has changed: its content digest is {digest}, the recipe pins {value.digest}\n"
                    "way out: remove `digest` to accept the new content, or restore the data"
                )
            return value.replace(digest=digest)
        if isinstance(value, tuple):
            pinned = tuple(pin(v) for v in value)
            return pinned if any(a is not b for a, b in zip(pinned, value)) else value
        fields = getattr(type(value), "model_fields", None)
        if fields:
            changed = {n: p for n in fields if (p := pin(getattr(value, n))) is not getattr(value, n)}
            return value.replace(**changed) if changed else value
        return value

    pinned = pin(stage)
    assert isinstance(pinned, Stage)
    return pinned


def advisory(packages: tuple[str, ...]) -> dict[str, str]:
    """Syntax-tree digest of each file of the named packages: not identity, but drift is reported by file."""
    root = Path(__file__).resolve().parents[2]
    found: dict[str, str] = {}
    for package in packages:
        path = root.joinpath(*package.split("."))
        files = sorted(path.rglob("*.py")) if path.is_dir() else [path.with_suffix(".py")]
        for file in files:
            if file.is_file():
                at = file.stat()
                found[file.relative_to(root).as_posix()] = _syntax(file, at.st_mtime_ns, at.st_size)
    return found


@cache
def _syntax(file: Path, changed: int, size: int) -> str:
    """Digest of the syntax tree of a file. changed, size: when it and how big it was, so that an edit is seen."""
    tree = ast.dump(ast.parse(file.read_text(encoding="utf-8")))
    return hashlib.blake2b(tree.encode(), digest_size=8).hexdigest()
