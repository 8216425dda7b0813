"""A modelling file for models that no published architecture expresses: our own modules in one file that needs torch and transformers only.

    AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)

The file is our sources in the order in which they import each other, imports of the package taken out, others merged. Config classes become
plain frozen dataclasses: their checks have been made, and pydantic is not there.
"""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path
from typing import Any

from upslope.config import UsageError
from upslope.machine.files import read_json, write_json, write_text

FILE = "modeling_upslope.py"
HERE = Path(__file__).parent
PACKAGE = "upslope."
ROOT = "remote"  # the module that everything else is there for

_CONFIG = '''
class UsageError(ValueError):
    """Something the user can mend."""


class Config:
    """A frozen value; fields may be given as what JSON holds."""

    def __init_subclass__(cls) -> None:
        dataclass(frozen=True, kw_only=True)(cls)

    def __post_init__(self) -> None:
        for name, hint in get_type_hints(type(self), globals()).items():
            object.__setattr__(self, name, _built(hint, getattr(self, name)))


def _built(hint: Any, value: Any) -> Any:
    """A value of an annotation from what JSON holds: objects become configs of their kind, lists tuples."""
    options = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    if isinstance(value, dict) and get_origin(hint) is dict:
        return {{k: _built(get_args(hint)[1], v) for k, v in value.items()}}
    if isinstance(value, list):
        of = next((get_args(o) for o in options if get_origin(o) is tuple), (Any, ...))
        return tuple(_built(of[0] if of[-1] is ... else of[i], v) for i, v in enumerate(value))
    if isinstance(value, dict):
        classes = [o for o in options if isinstance(o, type) and issubclass(o, Config)]
        kinds = {{getattr(c, "kind", None): c for c in classes}}
        if value.get("kind") not in kinds:
            raise UsageError(f"config.json: kind = {{value.get('kind')!r}}: not one of {{', '.join(map(str, kinds))}}")
        return kinds[value.get("kind")](**value)
    return value


{classes}
'''
_CONFIG_IMPORTS = (
    "from collections.abc import Iterator",
    "from dataclasses import dataclass",
    "from types import UnionType",
    "from typing import Any, Literal, Union, get_args, get_origin, get_type_hints",
)


def _inner(node: ast.stmt) -> str | None:
    """The module of this package that a statement imports from."""
    if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(PACKAGE):
        return str(node.module).removeprefix(PACKAGE + "model.")
    return None


@cache
def _tree(module: str) -> ast.Module:
    return ast.parse((HERE / f"{module}.py").read_text())


def modules() -> list[str]:
    """The modules of a bundle, each after those that it imports; ties by name. `config` is not among them."""
    order: list[str] = []

    def visit(module: str) -> None:
        for needed in sorted({m for node in _tree(module).body if (m := _inner(node)) is not None} - {"config", "upslope.config"}):
            if needed not in order:
                visit(needed)
        if module not in order:
            order.append(module)

    visit(ROOT)
    return order


def defined(tree: ast.Module) -> list[str]:
    """Names that a module's own statements bind."""
    out = []
    for node in tree.body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            out.append(node.name)
        elif isinstance(node, ast.Assign):
            out += [t.id for t in node.targets if isinstance(t, ast.Name)]
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            out.append(node.target.id)
    return out


def aliases() -> dict[str, str]:
    """Config classes that a module imports under another name, which they bear in the bundle."""
    nodes = [node for module in modules() for node in _tree(module).body if _inner(node) == "config"]
    return {a.name: a.asname for node in nodes if isinstance(node, ast.ImportFrom) for a in node.names if a.asname}


class _Plain(ast.NodeTransformer):
    """Config classes without what pydantic reads: annotations bare, checks and methods that need more modules left out."""

    def __init__(self, renamed: dict[str, str]) -> None:
        self.renamed = renamed

    def visit_Name(self, node: ast.Name) -> ast.Name:
        names = {**self.renamed, "Width": "int", "Positive": "float", "FrozenDict": "dict"}
        return ast.Name(names.get(node.id, node.id), node.ctx)

    def visit_Subscript(self, node: ast.Subscript) -> ast.AST:
        if isinstance(node.value, ast.Name) and node.value.id == "Annotated" and isinstance(node.slice, ast.Tuple):
            return self.visit(node.slice.elts[0])  # type: ignore[no-any-return]
        return self.generic_visit(node)

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.ClassDef:
        node.name = self.renamed.get(node.name, node.name)
        node.body = [n for n in node.body if not (isinstance(n, ast.FunctionDef) and _left_out(n))]
        self.generic_visit(node)
        return node


def _left_out(method: ast.FunctionDef) -> bool:
    return method.name.startswith("_") or any(isinstance(n, ast.Import | ast.ImportFrom) for n in ast.walk(method))


def _config_classes() -> str:
    """Classes and unions of the grammar, as plain Python."""
    tree = ast.parse((HERE / "config.py").read_text())
    plain = _Plain(aliases())
    parts = []
    for node in tree.body:
        union = isinstance(node, ast.Assign) and defined(ast.Module([node], []))[0] not in ("Width", "Positive")
        if isinstance(node, ast.ClassDef) or union:
            parts.append(ast.unparse(ast.fix_missing_locations(plain.visit(node))))
    return "\n\n\n".join(parts)


def _text(module: str) -> str:
    """A module's source, its docstring as a comment, without its imports."""
    source, tree = (HERE / f"{module}.py").read_text(), _tree(module)
    lines: list[str | None] = list(source.splitlines())
    for node in tree.body:
        checking = isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
        if isinstance(node, ast.Import | ast.ImportFrom) or checking:
            lines[node.lineno - 1 : node.end_lineno] = [None] * ((node.end_lineno or 0) - node.lineno + 1)
    doc = tree.body[0]
    lines[: doc.end_lineno] = [None] * (doc.end_lineno or 0)
    comment = "\n".join(f"# {line}".rstrip() for line in (ast.get_docstring(tree) or "").splitlines())
    return f"# ── {module} {'─' * (110 - len(module))}\n{comment}\n\n\n" + "\n".join(x for x in lines if x is not None).strip()


def _imports() -> str:
    """All imports from outside the package, merged and sorted."""
    nodes = [n for m in modules() for n in _tree(m).body] + [n for text in _CONFIG_IMPORTS for n in ast.parse(text).body]
    plain: set[str] = set()
    names: dict[str, set[str]] = {}
    for node in nodes:
        if isinstance(node, ast.Import):
            plain |= {f"import {a.name}" + (f" as {a.asname}" if a.asname else "") for a in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module != "__future__" and _inner(node) is None:
            names.setdefault(str(node.module), set()).update(a.name + (f" as {a.asname}" if a.asname else "") for a in node.names)
    names["typing"].discard("TYPE_CHECKING")
    return "\n".join([*sorted(plain), *(f"from {m} import {', '.join(sorted(found))}" for m, found in sorted(names.items()))])


@cache
def source() -> str:
    """The modelling file: the same bytes for every model of a version of this package."""
    from upslope import __version__

    head = (
        f"# Generated by upslope {__version__}: do not edit. Needs torch and transformers.\n"
        "# SPDX-License-Identifier: Apache-2.0\n\nfrom __future__ import annotations\n"
    )
    config = f"# ── config {'─' * 104}\n{_CONFIG.format(classes=_config_classes())}"
    return "\n\n".join([head + "\n" + _imports(), config.rstrip(), *("\n" + _text(m) for m in modules())]).rstrip() + "\n"


def clashes() -> dict[str, list[str]]:
    """Names that more than one module of a bundle binds, with those modules: there must be none."""
    renamed = aliases()
    owners: dict[str, list[str]] = {}
    for module in ("config", *modules()):
        tree = _tree(module)
        kept = [n for n in tree.body if not isinstance(n, ast.FunctionDef)] if module == "config" else tree.body
        for name in defined(ast.Module(kept, [])):
            owners.setdefault(renamed.get(name, name) if module == "config" else name, []).append(module)
    for name in ("UsageError", "Config", "_built"):
        owners.setdefault(name, []).append("bundle")
    return {name: found for name, found in owners.items() if len(found) > 1}


def write(folder: Path) -> None:
    """Adds the modelling file to a folder in our own names and points its config.json there. UsageError for other folders."""
    data: dict[str, Any] = read_json(folder / "config.json")
    if data.get("model_type") != "upslope":
        raise UsageError(f"{folder.name!r} is a {data.get('model_type')!r} folder: transformers has a class for it already")
    write_text(folder / FILE, source())
    stem = Path(FILE).stem
    auto = {"AutoConfig": f"{stem}.UpslopeConfig", "AutoModelForCausalLM": f"{stem}.UpslopeForCausalLM"}
    write_json(folder / "config.json", {**data, "architectures": ["UpslopeForCausalLM"], "auto_map": auto, "dtype": "float32"})
