"""MathML → TeX: the author's TeX where it was kept (annotation, data-latex, alttext), else a translation of Presentation or Content MathML.

Source: MathML Core, sections 3.2–3.5 (presentation elements); MathML 3, chapter 4 (content elements, in `content`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from upslope.data.extract import content
from upslope.data.extract.leaves import DEPTH, FENCES, UNSEEN, VARIANTS, annotation, only, operator, size_of, space, text, token
from upslope.data.extract.symbols import LIMITS, OVER, UNDER, XARROWS
from upslope.data.extract.tex import attach, base_of, clean, join, single, style, symbols

if TYPE_CHECKING:
    from selectolax.lexbor import LexborNode

MOD = re.compile(r"\\(?:quad|enspace|;)\s*\\mathrm\{mod\}\\,\\,")
MODULO = re.compile(r"(?:\\quad|\\;|\\ )?\s*\((?:\\mathrm|\\operatorname|\\text)\{mod(?:\\,|\s)*\}(?:\\[;, ]|\\quad)?\s*([^()]+)\)")
TALL = frozenset({"mfrac", "mtable", "munder", "mover", "munderover", "mroot", "msqrt"})
SCRIPTS = {"msup", "msub", "msubsup"}
OPEN, CLOSE = "([{⟨⌊⌈⟦〈", ")]}⟩⌋⌉⟧〉"
BIG_OPERATORS = frozenset("∑∏∐⋃⋂⋁⋀⨁⨂⨀⨄⨆")
VARIANT_LIMITS = {("→", ""): r"\varinjlim", ("←", ""): r"\varprojlim", ("―", ""): r"\varliminf", ("", "―"): r"\varlimsup"}
INTEGRALS = frozenset("∫∬∭⨌∮∯∰")
MATRICES = {("(", ")"): "pmatrix", ("[", "]"): "bmatrix", ("{", "}"): "Bmatrix", ("|", "|"): "vmatrix", ("‖", "‖"): "Vmatrix"}
MATRICES |= {("∣", "∣"): "vmatrix", ("∥", "∥"): "Vmatrix", ("{", ""): "cases"}
CHOICES = {("(", ")"): r"\binom{%s}{%s}", ("[", "]"): r"{%s \brack %s}", ("{", "}"): r"{%s \brace %s}"}
ENCLOSED = {
    "box": r"\boxed{%s}",
    "roundedbox": r"\boxed{%s}",
    "circle": r"\boxed{%s}",
    "updiagonalstrike": r"\cancel{%s}",
    "downdiagonalstrike": r"\bcancel{%s}",
    "horizontalstrike": r"\sout{%s}",
    "top": r"\overline{%s}",
    "bottom": r"\underline{%s}",
    "radical": r"\sqrt{%s}",
    "left right": r"\left|%s\right|",
    "longdiv": r"\overline{)%s}",
    "actuarial": r"\overline{%s|}",
    "madruwb": r"\overline{%s|}",
}


def to_tex(math: LexborNode) -> tuple[str, bool]:
    """(TeX without delimiters, whether it stands in a display of its own) of a <math> element."""
    attributes = math.attributes
    display = attributes.get("display") == "block" or "display" in (attributes.get("mode") or "")
    for holder in (math, only(math)):
        if holder.tag in ("math", "semantics") and (tex := annotation(holder)):
            return clean(tex), display
    if known := attributes.get("data-latex"):
        return clean(known), display
    alt = (attributes.get("alttext") or "").strip()
    if alt and ("\\" in alt or not re.search(r"[A-Za-z]{3}", alt)):
        return clean(alt), display
    tex = MODULO.sub(r"\\pmod{\1}", _node(math, 0)).replace(r"\operatorname{mod}", r"\bmod ")
    return clean(MOD.sub(r"\\mod ", tex)) or clean(alt), display


def _kids(node: LexborNode, text: bool = False) -> list[LexborNode]:
    """Children that are seen; text: also text that stands among them, if it is not blank."""
    kids = [c for c in node.iter(include_text=text) if c.tag not in UNSEEN]
    return [c for c in kids if c.tag != "-text" or (c.text_content or "").strip()] if text else kids


def _node(node: LexborNode, depth: int) -> str:
    """One element and all below it."""
    tag = node.tag or ""
    if tag == "-text":
        return symbols((node.text_content or "").strip())
    if depth > DEPTH:
        return symbols(node.text(deep=True).strip())
    if tag in ("mi", "mn", "mo"):
        return token(node, tag)
    if tag in ("mtext", "ms"):
        return text(node, tag)
    if tag == "mspace":
        return space(node)
    if tag == "semantics":
        tex = annotation(node)
        return "{" + clean(tex) + "}" if tex else _row(_kids(node), depth)
    if tag == "mtable":
        return _table(node, depth)
    if tag in content.ELEMENTS:
        return content.to_tex(node, depth, lambda inner: _node(inner, depth + 1))
    kids = _kids(node, text=True)
    if tag in STRUCTURES:
        return STRUCTURES[tag](node, [k for k in kids if k.tag != "-text"], depth + 1)
    if tag == "mpadded" and node.attributes.get("width") in ("0", "0px") and node.text(deep=True).strip() in ("⧸", "/"):
        return r"\not"
    if tag == "mstyle" and node.attributes.get("scriptlevel") == "1" and len(kids) == 1 and kids[0].tag == "mtable":
        return _table(kids[0], depth, "substack" if _columns(kids[0])[1] == 1 else "smallmatrix")
    if tag == "mglyph":
        return rf"\text{{{node.attributes.get('alt') or ''}}}"
    if tag == "maction":
        return _node(kids[0], depth + 1) if kids else ""
    inner = _row(kids, depth)
    variant = VARIANTS.get(node.attributes.get("mathvariant") or "") if tag == "mstyle" else None
    return style(inner, variant) if variant and inner else inner


def _delimiter(side: str, text: str) -> str:
    return side + (symbols(text) or ".")


def _row(nodes: list[LexborNode], depth: int) -> str:
    """Elements side by side; fences around a table or something tall become matrices and \\left…\\right."""
    if depth > DEPTH:
        return symbols("".join(n.text(deep=True).strip() for n in nodes))
    pairs = _pairs(nodes)
    tall = [_tall(n, 3) for n in nodes] if pairs else []
    pieces: list[str] = []
    closing: dict[int, str] = {}
    font = ""
    at = 0
    while at < len(nodes):
        node = nodes[at]
        end, left, right = pairs.get(at, (0, "", ""))
        if end:
            inner = only(nodes[at + 1]) if end in (at + 2, at + 3) and at + 1 < len(nodes) else None
            special = _fenced(inner, left, right, depth) if inner is not None and end == at + 2 else ""
            if special:
                pieces.append(special)
                at = end + 1
                continue
            fence = only(node)
            if not size_of(fence) and (fence.attributes.get("stretchy") == "true" or any(tall[at + 1 : end])):
                pieces.append(_delimiter(r"\left", left))
                if end >= len(nodes):
                    closing[len(nodes)] = r"\right."
                else:
                    closing[end] = _delimiter(r"\right", right)
                at += 1
                continue
        if at in closing:
            pieces.append(closing[at])
        elif closing and operator(node) in ("|", "∣", "/") and only(node).attributes.get("stretchy") == "true":
            pieces.append(_delimiter(r"\middle", operator(node) or ""))
        else:
            piece = _node(node, depth + 1)
            single = re.fullmatch(r"\\(math[a-z]+)\{([A-Za-z0-9])\}", piece)
            single = single if node.tag == "mi" and "mathvariant" in node.attributes else None
            if single and font == single.group(1):
                pieces[-1] = pieces[-1][:-1] + single.group(2) + "}"
            else:
                pieces.append(piece)
            font = single.group(1) if single else ""
            at += 1
            continue
        font = ""
        at += 1
    if len(nodes) in closing:
        pieces.append(closing[len(nodes)])
    return join(pieces)


def _pairs(nodes: list[LexborNode]) -> dict[int, tuple[int, str, str]]:
    """Fences that belong together: index of the opening one → (index of the closing one, their texts)."""
    found: dict[int, tuple[int, str, str]] = {}
    stack: list[tuple[int, str]] = []
    last = len(nodes) - 1
    for i, node in enumerate(nodes):
        text = operator(node)
        if text is None or (text not in FENCES and text != ""):
            continue
        attributes = only(node).attributes
        if attributes.get("stretchy") == "false":
            continue
        form = attributes.get("form") or ("prefix" if i == 0 and last > 0 else "postfix" if i == last else "")
        if (text in OPEN and text) or ((text not in CLOSE or text == "") and form == "prefix"):
            stack.append((i, text))
        elif stack and ((text in CLOSE and text) or form == "postfix" or (text == stack[-1][1] and i == stack[-1][0] + 2)):
            start, left = stack.pop()
            found[start] = (i, left, text)
        elif not stack and i + 2 <= last and text and text == operator(nodes[i + 2]):  # | matrix | inside a row
            stack.append((i, text))
    for start, left in stack:
        inner = only(nodes[start + 1]) if start == last - 1 else None
        if inner is not None and inner.tag == "mtable":
            found[start] = (start + 2, left, "")
        elif start == 0 and only(nodes[0]).attributes.get("stretchy") == "true":
            found[start] = (len(nodes), left, "")
    return found


def _fenced(inner: LexborNode, left: str, right: str, depth: int) -> str:
    """A matrix, cases or binomial coefficient: what stands between two fences alone; "" if it is something else."""
    if inner.tag == "mtable" and (left, right) in MATRICES:
        return _table(inner, depth + 1, MATRICES[left, right])
    if inner.tag == "mfrac" and (left, right) in CHOICES and _length_zero(inner):
        kids = _kids(inner)
        if len(kids) == 2:
            return CHOICES[left, right] % (_node(kids[0], depth + 2).strip(), _node(kids[1], depth + 2).strip())
    return ""


def _length_zero(fraction: LexborNode) -> bool:
    return (fraction.attributes.get("linethickness") or "1").strip().rstrip("ptxemin%") in ("0", "0.0")


def _tall(node: LexborNode, levels: int) -> bool:
    if node.tag in TALL:
        return True
    return levels > 0 and any(_tall(c, levels - 1) for c in node.iter())


def _cells(row: LexborNode) -> list[LexborNode]:
    """The cells of a row, without its label."""
    cells = [c for c in row.iter() if c.tag == "mtd"]
    return cells[1:] if row.tag == "mlabeledtr" else cells


def _columns(table: LexborNode) -> tuple[str, int]:
    """(alignment of each column as letters, number of columns)."""
    rows = [_cells(row) for row in table.iter() if row.tag in ("mtr", "mlabeledtr")]
    width = max((len(r) for r in rows), default=0)
    names = (table.attributes.get("columnalign") or "").split()
    if not names:
        widest = next((r for r in rows if len(r) == width), [])
        names = [cell.attributes.get("columnalign") or "center" for cell in widest]
    names += names[-1:] * (width - len(names))
    return "".join(n[:1] if n[:1] in ("l", "r", "c") else "c" for n in names[:width]), width


def _table(table: LexborNode, depth: int, env: str = "") -> str:
    rows = [_cells(r) for r in table.iter() if r.tag in ("mtr", "mlabeledtr")]
    lines = [" & ".join(_row(_kids(c, text=True), depth + 2).strip() for c in cells) for cells in rows]
    if len(lines) == 1 and not env and " & " not in lines[0]:
        return lines[0]
    if env == "substack":
        return r"\substack{" + r" \\ ".join(lines) + "}"
    align, width = _columns(table)
    attributes = table.attributes
    bars = (attributes.get("columnlines") or "").split()
    ruled = (attributes.get("rowlines") or "").split()
    lined = any(b != "none" for b in bars) or any(r != "none" for r in ruled)
    spec = ""
    if not env:
        loose = attributes.get("displaystyle") == "true" or (attributes.get("columnspacing") or "").startswith("0")
        if not lined and width > 1 and align == ("rl" * width)[:width] and loose:
            env = "aligned"
        elif not lined and width == 1 and attributes.get("displaystyle") == "true" and len(lines) > 1:
            env = "gathered"
    if not env or (lined and env != "cases"):
        if lined or (set(align) != {"c"} and align):
            bars += bars[-1:] * (width - 1 - len(bars))
            spec = "".join(a + ("|" if i < len(bars) and i < width - 1 and bars[i] != "none" else "") for i, a in enumerate(align))
            left, right = {v: k for k, v in reversed(MATRICES.items())}.get(env, ("", ""))
            body = r"\begin{array}{" + spec + "}" + _lines(lines, ruled) + r"\end{array}"
            return _delimiter(r"\left", left) + body + _delimiter(r"\right", right) if env else body
        env = "matrix"
    return rf"\begin{{{env}}}" + _lines(lines, ()) + rf"\end{{{env}}}"


def _lines(lines: Sequence[str], ruled: Sequence[str]) -> str:
    out = ""
    for i, line in enumerate(lines):
        rule = ruled[min(i - 1, len(ruled) - 1)] if i and ruled else "none"
        out += (r" \\" if i else "") + (r" \hline" if rule != "none" else "") + " " + line
    return out + " "


def _fraction(node: LexborNode, kids: list[LexborNode], depth: int) -> str:
    above, below = _parts(kids, 2, depth)
    if _length_zero(node):
        return rf"{{{above} \atop {below}}}"
    return f"{base_of(above)}/{base_of(below)}" if node.attributes.get("bevelled") == "true" else rf"\frac{{{above}}}{{{below}}}"


def _parts(kids: list[LexborNode], n: int, depth: int) -> list[str]:
    """The first n children; "" for those that are missing."""
    return [_node(k, depth).strip() for k in kids[:n]] + [""] * (n - len(kids))


def _script(node: LexborNode, kids: list[LexborNode], depth: int) -> str:
    scripts = 1 + (node.tag == "msubsup")
    if len(kids) > scripts + 1:  # a base of several elements that no mrow holds together
        base = _row(kids[:-scripts], depth).strip()
        parts = [base, *(_stacked(k, depth) for k in kids[-scripts:]), ""]
    else:
        parts = [*_parts(kids, 1, depth), *(_stacked(k, depth) for k in kids[1:]), "", ""]
    if node.tag == "msub":
        return attach(parts[0], parts[1], "")
    return attach(parts[0], "", parts[1]) if node.tag == "msup" else attach(parts[0], parts[1], parts[2])


def _limits(node: LexborNode, kids: list[LexborNode], depth: int) -> str:
    """munder, mover and munderover: an accent, a brace, an arrow with text, an operator with limits, or something stacked."""
    if not kids:
        return ""
    core = only(kids[0])
    low = kids[1] if node.tag != "mover" and len(kids) > 1 else None
    high = kids[1] if node.tag == "mover" and len(kids) > 1 else kids[2] if len(kids) > 2 else None
    text = core.text(deep=True).strip() if core.tag in ("mo", "mi", "mtext") else ""
    below, above = _mark(low), _mark(high)
    arrow = XARROWS.get(text)
    named = text in BIG_OPERATORS or text in LIMITS
    if text == "lim" and (var := VARIANT_LIMITS.get((below, above))):
        return var
    if not arrow and (above in OVER or below in UNDER) and not (named and (above or below) in ".~-−*"):
        inner = _node(kids[0], depth).strip()
        if above in OVER and high is not None:
            narrow, wide = OVER[above]
            fixed = only(high).attributes.get("stretchy") == "false"
            inner = rf"\{narrow if fixed or single(inner) else wide}{{{inner}}}"
            high = None
        if below in UNDER:
            inner = rf"\{UNDER[below]}{{{inner}}}"
            low = None
        return _stack(inner, low, high, depth)
    under, over = (_stacked(k, depth) if k is not None else "" for k in (low, high))
    if arrow:
        return rf"\{arrow}" + (f"[{{{under}}}]" if "]" in under else f"[{under}]" if under else "") + f"{{{over}}}"
    base = _node(kids[0], depth).strip()
    if text in INTEGRALS:
        return attach(base, under, over).replace(base, base + r"\limits", 1)
    movable = core.attributes.get("movablelimits") == "true"
    if (
        named
        or base in LIMITS.values()
        or movable
        or base in VARIANT_LIMITS.values()
        or re.match(r"\\(over|under)(brace|bracket|paren)\b", base)
    ):
        return attach(base, under, over)
    name = re.fullmatch(r"\\(?:operatorname\*?|mathrm)\{([A-Za-z\\, -]{2,})\}", base)
    if name:
        return attach(rf"\operatorname*{{{name.group(1)}}}", under, over)
    return _stack(base, low, high, depth)


def _stacked(node: LexborNode, depth: int) -> str:
    """A limit or script; lines below one another are a substack."""
    inner = only(node)
    if inner.tag == "mtable" and _columns(inner)[1] == 1 and len(_kids(inner)) > 1:
        return _table(inner, depth, "substack")
    return _node(node, depth).strip()


def _stack(base: str, low: LexborNode | None, high: LexborNode | None, depth: int) -> str:
    if re.match(r"\\(over|under)(brace|bracket|paren)\{", base):
        return attach(base, _node(low, depth) if low is not None else "", _node(high, depth) if high is not None else "")
    if high is not None:
        base = rf"\overset{{{_node(high, depth).strip()}}}{{{base}}}"
    return rf"\underset{{{_node(low, depth).strip()}}}{{{base}}}" if low is not None else base


def _mark(node: LexborNode | None) -> str:
    """The character that stands over or under something, if it is one."""
    node = only(node) if node is not None else None
    return node.text(deep=True).strip() if node is not None and node.tag in ("mo", "mi", "mtext", "mn") else ""


def _prescripts(node: LexborNode, kids: list[LexborNode], depth: int) -> str:
    """mmultiscripts: {}_{a}^{b}X_{c}^{d}."""
    parts: list[list[str]] = [[], []]
    side = base = 0
    head = ""
    for child in node.iter():
        if child.tag == "mprescripts":
            side = 1
        elif not base:
            head, base = _node(child, depth), 1
        else:
            parts[side].append("" if child.tag == "none" else _node(child, depth).strip())
    before, after = ([(p[i], p[i + 1] if i + 1 < len(p) else "") for i in range(0, len(p), 2)] for p in parts[::-1])
    out = "".join(attach("", *pair) for pair in before if any(pair))
    out = join([out, attach(head, *after[0]) if after and any(after[0]) else base_of(head) if out else head.strip()])
    return out + "".join(attach("", *pair) for pair in after[1:] if any(pair))


def _brackets(node: LexborNode, kids: list[LexborNode], depth: int) -> str:
    """mfenced: fences and separators in attributes."""
    attributes = node.attributes
    left, right = ((attributes[k] or "").strip() if k in attributes else d for k, d in (("open", "("), ("close", ")")))
    marks = re.sub(r"\s", "", attributes["separators"] or "") if "separators" in attributes else ","
    inner = only(kids[0]) if len(kids) == 1 else None
    if inner is not None and (special := _fenced(inner, left, right, depth)):
        return special
    pieces: list[str] = []
    for i, k in enumerate(kids):
        pieces += [symbols(marks[min(i - 1, len(marks) - 1)]) if i and marks else "", _node(k, depth).strip()]
    if any(_tall(k, 3) for k in kids):
        return join([_delimiter(r"\left", left), *pieces, _delimiter(r"\right", right)])
    return join([symbols(left), *pieces, symbols(right)])


def _enclosed(node: LexborNode, kids: list[LexborNode], depth: int) -> str:
    inner = _row(kids, depth).strip()
    notation = " ".join((node.attributes.get("notation") or "longdiv").split())
    if {"updiagonalstrike", "downdiagonalstrike"} <= set(notation.split()):
        return rf"\xcancel{{{inner}}}"
    if notation in ENCLOSED:
        return ENCLOSED[notation] % inner
    for word in notation.split():
        if word in ENCLOSED:
            inner = ENCLOSED[word] % inner
    return inner


def _root(node: LexborNode, kids: list[LexborNode], depth: int) -> str:
    if node.tag == "msqrt":
        return rf"\sqrt{{{_row(kids, depth).strip()}}}"
    inner, degree = _parts(kids, 2, depth)
    return rf"\sqrt[{{{degree}}}]{{{inner}}}" if "]" in degree else rf"\sqrt[{degree}]{{{inner}}}"


STRUCTURES = {
    "mfrac": _fraction,
    "msqrt": _root,
    "mroot": _root,
    **dict.fromkeys(SCRIPTS, _script),
    **dict.fromkeys(("munder", "mover", "munderover"), _limits),
    "mmultiscripts": _prescripts,
    "mfenced": _brackets,
    "menclose": _enclosed,
}
