"""Content MathML → TeX: what a formula means (apply, plus, eq) written the way it is usually set.

Source: MathML 3, chapter 4. Elements without a usual notation become `\\operatorname{name}(arguments)`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from selectolax.lexbor import LexborNode

INFIX = {
    "plus": ("+", 1),
    "minus": ("-", 1),
    "times": (r"\,", 2),
    "vectorproduct": (r" \times ", 2),
    "scalarproduct": (r" \cdot ", 2),
    "outerproduct": (r" \otimes ", 2),
    "cartesianproduct": (r" \times ", 2),
    "compose": (r" \circ ", 2),
    "eq": ("=", 0),
    "neq": (r" \ne ", 0),
    "lt": ("<", 0),
    "gt": (">", 0),
    "leq": (r" \le ", 0),
    "geq": (r" \ge ", 0),
    "equivalent": (r" \equiv ", 0),
    "approx": (r" \approx ", 0),
    "factorof": (r" \mid ", 0),
    "in": (r" \in ", 0),
    "notin": (r" \notin ", 0),
    "subset": (r" \subseteq ", 0),
    "prsubset": (r" \subset ", 0),
    "notsubset": (r" \nsubseteq ", 0),
    "notprsubset": (r" \not\subset ", 0),
    "union": (r" \cup ", 1),
    "intersect": (r" \cap ", 1),
    "setdiff": (r" \setminus ", 1),
    "and": (r" \land ", 0.8),
    "or": (r" \lor ", 0.7),
    "xor": (r" \oplus ", 0.7),
    "implies": (r" \Rightarrow ", -1),
    "tendsto": (r" \to ", 0),
    "rem": (r" \bmod ", 2),
}
"""Operator → (what stands between its arguments, how tightly it binds)."""
WRAPPED = {
    "abs": r"\left|%s\right|",
    "card": r"\left|%s\right|",
    "floor": r"\left\lfloor %s\right\rfloor",
    "ceiling": r"\left\lceil %s\right\rceil",
    "conjugate": r"\overline{%s}",
    "exp": "e^{%s}",
    "mean": r"\left\langle %s\right\rangle",
    "set": r"\{%s\}",
    "list": r"\left[%s\right]",
    "vector": r"\left(%s\right)",
}
POSTFIX = {"factorial": "!", "transpose": "^T", "inverse": "^{-1}"}
PREFIX = {"not": r"\neg ", "grad": r"\nabla ", "divergence": r"\nabla \cdot ", "curl": r"\nabla \times ", "laplacian": r"\nabla^2 "}
NAMED = {
    n: f"\\{n}"
    for n in [
        "sin",
        "cos",
        "tan",
        "sec",
        "csc",
        "cot",
        "sinh",
        "cosh",
        "tanh",
        "coth",
        "arcsin",
        "arccos",
        "arctan",
        "ln",
        "log",
        "max",
        "min",
        "gcd",
        "arg",
        "det",
        "dim",
        "ker",
    ]
} | {"real": r"\Re", "imaginary": r"\Im", "determinant": r"\det"}
CONSTANTS = {
    "pi": r"\pi",
    "exponentiale": "e",
    "imaginaryi": "i",
    "infinity": r"\infty",
    "eulergamma": r"\gamma",
    "emptyset": r"\emptyset",
    "true": r"\text{true}",
    "false": r"\text{false}",
    "notanumber": r"\text{NaN}",
    "reals": r"\mathbb{R}",
    "integers": r"\mathbb{Z}",
    "naturalnumbers": r"\mathbb{N}",
    "rationals": r"\mathbb{Q}",
    "complexes": r"\mathbb{C}",
    "primes": r"\mathbb{P}",
}
BIG = {"sum": r"\sum", "product": r"\prod", "int": r"\int", "limit": r"\lim", "forall": r"\forall", "exists": r"\exists"}
QUALIFIERS = frozenset({"bvar", "lowlimit", "uplimit", "degree", "logbase", "domainofapplication", "condition", "interval"})
ELEMENTS = frozenset({"apply", "cn", "ci", "csymbol", "cs", "matrix", "matrixrow", "piecewise", "interval", "lambda", "bind", "bvar"})
ELEMENTS |= {"set", "list", "vector", "lowlimit", "uplimit", "degree", "logbase", "condition", "reln"} | CONSTANTS.keys()

Go = Callable[["LexborNode"], str]


def to_tex(node: LexborNode, depth: int, go: Go) -> str:
    """TeX of one content element; `go` translates what is below it."""
    tag = node.tag or ""
    kids = list(node.iter())
    if tag in CONSTANTS:
        return CONSTANTS[tag]
    if tag in ("cn", "ci", "csymbol", "cs"):
        return _leaf(node, kids, go)
    if tag in ("apply", "reln", "bind"):
        return _apply(kids, go)
    parts = [go(k) for k in kids]
    if tag == "matrix":
        return r"\begin{pmatrix} " + r" \\ ".join(parts) + r" \end{pmatrix}"
    if tag == "matrixrow":
        return " & ".join(parts)
    if tag == "piecewise":
        rows = [" & ".join([go(c) for c in k.iter()] + ([r"\text{otherwise}"] if k.tag == "otherwise" else [])) for k in kids]
        return r"\begin{cases} " + r" \\ ".join(rows) + r" \end{cases}"
    if tag == "interval":
        closure = node.attributes.get("closure") or "closed"
        return ("(" if closure in ("open", "open-closed") else "[") + ",".join(parts) + (")" if closure in ("open", "closed-open") else "]")
    if tag == "lambda":
        return "(" + ",".join(parts[:-1]) + r")\mapsto " + "".join(parts[-1:])
    return WRAPPED[tag] % ",".join(parts) if tag in WRAPPED else ",".join(parts)


def _leaf(node: LexborNode, kids: list[LexborNode], go: Go) -> str:
    """A number or a name."""
    if node.tag == "cn" and kids and kids[0].tag == "sep":
        low, high = (*node.text(deep=True, separator=" ").split(), "", "")[:2]
        kind = node.attributes.get("type") or ""
        if kind == "rational":
            return rf"\frac{{{low}}}{{{high}}}"
        return rf"{low} \times 10^{{{high}}}" if kind == "e-notation" else f"{low}+{high}i" if "complex" in kind else low + high
    if kids:
        return "".join(go(k) for k in kids)
    text = node.text().strip()
    if node.tag == "csymbol" and text in CONSTANTS:
        return CONSTANTS[text]
    return text if len(text) < 2 or not text.isalpha() or node.tag == "cn" else rf"\mathrm{{{text}}}"


def _binding(node: LexborNode) -> float:
    """How tightly the outermost operator of an argument binds."""
    first = next(iter(node.iter()), None) if node.tag in ("apply", "reln") else None
    if first is None:
        return 9
    if first.tag in BIG:
        return 1
    return INFIX.get(first.tag or "", ("", 9))[1]


def _apply(kids: list[LexborNode], go: Go) -> str:
    if not kids:
        return ""
    head, name = kids[0], kids[0].tag or ""
    if name in ("csymbol", "cs"):
        name = head.text().strip()
    marks: dict[str | None, LexborNode] = {k.tag: k for k in kids[1:] if k.tag in QUALIFIERS}
    nodes = [k for k in kids[1:] if k.tag not in QUALIFIERS or (k.tag == "interval" and name not in BIG)]
    args = [go(k) for k in nodes]

    def within(i: int, least: float) -> str:
        return f"({args[i]})" if _binding(nodes[i]) <= least else args[i]

    if name in INFIX and args:
        sign, tight = INFIX[name]
        if len(args) == 1:
            return sign.strip() + within(0, tight)
        parts = [within(i, tight - (0 if i and name == "minus" else 0.1)) for i in range(len(args))]
        if name == "times" and any(a[:1].isdigit() for a in parts[1:]):
            sign = r" \cdot "
        return sign.join(parts)
    if name == "divide" and len(args) == 2:
        return rf"\frac{{{args[0]}}}{{{args[1]}}}"
    if name == "power" and len(args) == 2:
        base = args[0] if nodes[0].tag in ("ci", "cn") and "^" not in args[0] else f"({args[0]})"
        return f"{base}^{{{args[1]}}}"
    if name == "root" and args:
        degree = go(marks["degree"]) if "degree" in marks else ""
        return rf"\sqrt[{degree}]{{{args[0]}}}" if degree not in ("", "2") else rf"\sqrt{{{args[0]}}}"
    if name in ("diff", "partialdiff") and args:
        return _derivative(name, kids, args, go)
    if name in BIG:
        return _big(name, marks, args, go)
    if name in WRAPPED:
        return WRAPPED[name] % ",".join(args)
    if name in POSTFIX and args:
        return (args[0] if nodes[0].tag in ("ci", "cn", "matrix") else f"({args[0]})") + POSTFIX[name]
    if name in PREFIX and args:
        return PREFIX[name] + within(0, 1)
    if name == "selector" and args:
        return args[0] + "_{" + ",".join(args[1:]) + "}"
    function = NAMED.get(name) or (go(head) if head.tag in ELEMENTS else rf"\operatorname{{{name}}}")
    if name == "log" and "logbase" in marks:
        function += "_{" + go(marks["logbase"]) + "}"
    if name in NAMED and len(args) == 1 and nodes[0].tag in ("ci", "cn"):
        return f"{function} {args[0]}"
    return f"{function}({','.join(args)})"


def _derivative(name: str, kids: list[LexborNode], args: list[str], go: Go) -> str:
    d = "d" if name == "diff" else r"\partial "
    below, order, total = "", "", 0
    for bound in (k for k in kids if k.tag == "bvar"):
        inner = list(bound.iter())
        degree = next((go(k) for k in inner if k.tag == "degree"), "")
        variable = "".join(go(k) for k in inner if k.tag != "degree")
        below += f"{d}{variable}" + (f"^{{{degree}}}" if degree else "")
        total += int(degree) if degree.isdigit() else 1
        order = degree if degree and not degree.isdigit() else order
    if not below:
        return f"{args[0]}'"
    order = order or (str(total) if total > 1 else "")
    power = f"^{{{order}}}" if order else ""
    return rf"\frac{{{d.strip()}{power} {args[0]}}}{{{below}}}"


def _big(name: str, marks: dict[str | None, LexborNode], args: list[str], go: Go) -> str:
    variable = go(marks["bvar"]) if "bvar" in marks else ""
    low = go(marks["lowlimit"]) if "lowlimit" in marks else ""
    high = go(marks["uplimit"]) if "uplimit" in marks else ""
    condition = go(marks["condition"]) if "condition" in marks else ""
    if "interval" in marks:
        low, high = ([go(k) for k in marks["interval"].iter()] + ["", ""])[:2]
    elif "domainofapplication" in marks:
        low = go(marks["domainofapplication"])
    body = ",".join(args)
    if name in ("forall", "exists"):
        return f"{BIG[name]} {variable}" + (f",{condition}" if condition else "") + f":{body}"
    if name == "int":
        below = low or condition
    elif name == "limit":
        below = condition or rf"{variable} \to {low}"
    else:
        below = condition or (
            f"{variable}={low}" if low and variable and high else rf"{variable} \in {low}" if low and variable else variable
        )
    out = BIG[name] + (f"_{{{below}}}" if below else "") + (f"^{{{high}}}" if high else "") + f" {body}"
    return out + (rf"\,d{variable}" if name == "int" and variable else "")
