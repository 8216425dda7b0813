"""MathML → TeX: the author's TeX where it was kept (annotation, alttext), else a translation of Presentation MathML.

Source: MathML Core, sections 3.2–3.5 (presentation elements).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from selectolax.lexbor import LexborNode

DEPTH = 60
SYMBOLS = {
    "α": r"\alpha",
    "β": r"\beta",
    "γ": r"\gamma",
    "δ": r"\delta",
    "ε": r"\epsilon",
    "ζ": r"\zeta",
    "η": r"\eta",
    "θ": r"\theta",
    "κ": r"\kappa",
    "λ": r"\lambda",
    "μ": r"\mu",
    "ν": r"\nu",
    "ξ": r"\xi",
    "π": r"\pi",
    "ρ": r"\rho",
    "σ": r"\sigma",
    "τ": r"\tau",
    "φ": r"\phi",
    "χ": r"\chi",
    "ψ": r"\psi",
    "ω": r"\omega",
    "Γ": r"\Gamma",
    "Δ": r"\Delta",
    "Θ": r"\Theta",
    "Λ": r"\Lambda",
    "Π": r"\Pi",
    "Σ": r"\Sigma",
    "Φ": r"\Phi",
    "Ψ": r"\Psi",
    "Ω": r"\Omega",
    "∑": r"\sum",
    "∏": r"\prod",
    "∫": r"\int",
    "∂": r"\partial",
    "∇": r"\nabla",
    "∞": r"\infty",
    "±": r"\pm",
    "×": r"\times",
    "·": r"\cdot",
    "⋅": r"\cdot",
    "÷": r"\div",
    "≤": r"\le",
    "≥": r"\ge",
    "≠": r"\ne",
    "≈": r"\approx",
    "≡": r"\equiv",
    "∈": r"\in",
    "∉": r"\notin",
    "⊂": r"\subset",
    "⊆": r"\subseteq",
    "∪": r"\cup",
    "∩": r"\cap",
    "→": r"\to",
    "⇒": r"\Rightarrow",
    "↔": r"\leftrightarrow",
    "∀": r"\forall",
    "∃": r"\exists",
    "…": r"\ldots",
    "⋯": r"\cdots",
    "√": r"\surd",
    "−": "-",
    "⟨": r"\langle",
    "⟩": r"\rangle",
    "′": "'",
    "\u2061": "",
    "\u2062": "",
    "\u2063": "",
    "\u2064": "",
    "\u00a0": " ",
    "{": r"\{",
    "}": r"\}",
    "%": r"\%",
    "#": r"\#",
    "&": r"\&",
    "$": r"\$",
}
ACCENTS = {
    "^": r"\hat",
    "ˆ": r"\hat",
    "~": r"\tilde",
    "˜": r"\tilde",
    "¯": r"\bar",
    "‾": r"\overline",
    "→": r"\vec",
    "˙": r"\dot",
    "¨": r"\ddot",
}
UNSEEN = ("annotation", "annotation-xml", "none", "mprescripts", "mphantom")
FUNCTIONS = {"sin", "cos", "tan", "log", "ln", "exp", "lim", "max", "min", "det", "gcd", "sup", "inf", "arg", "dim", "ker", "Pr"}


def to_tex(math: LexborNode) -> tuple[str, bool]:
    """(TeX without delimiters, whether it stands in a display of its own) of a <math> element."""
    attributes = math.attributes
    display = attributes.get("display") == "block" or "display" in (attributes.get("mode") or "")
    for note in math.css("annotation"):
        if "tex" in (note.attributes.get("encoding") or "").lower():
            return clean(note.text(deep=True)), display
    if alt := attributes.get("alttext"):
        return clean(alt), display
    return clean(_translate(math, 0)), display


def clean(tex: str) -> str:
    """TeX without delimiters and without what only tells a renderer how big to draw it."""
    tex = tex.strip()
    for left, right in (("\\(", "\\)"), ("\\[", "\\]"), ("$$", "$$"), ("$", "$")):
        if tex.startswith(left) and tex.endswith(right) and len(tex) >= len(left) + len(right):
            tex = tex[len(left) : -len(right)].strip()
            break
    if tex.startswith("{\\displaystyle") and tex.endswith("}"):
        tex = tex[len("{\\displaystyle") : -1].strip()
    return tex.removeprefix("\\displaystyle").strip()


def _symbols(text: str) -> str:
    out = ""
    for ch in text.strip():
        piece = SYMBOLS.get(ch, ch)
        out += piece + (" " if piece.startswith("\\") and piece[-1].isalpha() else "")
    return out


def _group(tex: str) -> str:
    """As an argument: braces are left out only for a single character."""
    tex = tex.strip()
    return tex if len(tex) == 1 and tex != "^" else "{" + tex + "}"


def _translate(node: LexborNode, depth: int) -> str:
    if depth > DEPTH:
        return _symbols(node.text(deep=True))
    tag = node.tag
    children = [c for c in node.iter(include_text=False) if (c.tag or "") not in UNSEEN]
    if tag == "mtable":
        rows = [" & ".join(_translate(cell, depth + 2).strip() for cell in row.iter()) for row in children]
        return r"\begin{matrix}" + r" \\ ".join(rows) + r"\end{matrix}"
    if tag in ("mi", "mn", "mo"):
        text = node.text(deep=True).strip()
        if text in FUNCTIONS:
            return f"\\{text} "
        return rf"\mathrm{{{text}}}" if tag == "mi" and len(text) > 1 and text.isalpha() else _symbols(text)
    if tag in ("mtext", "ms"):
        return rf"\text{{{node.text(deep=True).strip()}}}"
    if tag == "mspace":
        return " "

    def part(i: int) -> str:
        return _translate(children[i], depth + 1) if i < len(children) else ""

    if tag == "mfrac":
        return rf"\frac{{{part(0).strip()}}}{{{part(1).strip()}}}"
    if tag == "mroot":
        return rf"\sqrt[{part(1).strip()}]{{{part(0).strip()}}}"
    if tag == "msup":
        return f"{_base(part(0))}^{_group(part(1))}"
    if tag in ("msub", "munder"):
        return f"{_base(part(0))}_{_group(part(1))}"
    if tag in ("msubsup", "munderover"):
        return f"{_base(part(0))}_{_group(part(1))}^{_group(part(2))}"
    if tag == "mover":
        over = children[1].text(deep=True).strip() if len(children) > 1 else ""
        return f"{ACCENTS[over]}{{{part(0).strip()}}}" if over in ACCENTS else f"{_base(part(0))}^{_group(part(1))}"
    inner = "".join(_translate(c, depth + 1) for c in children) if children else _symbols(node.text(deep=True))
    if tag == "msqrt":
        return rf"\sqrt{{{inner.strip()}}}"
    if tag == "mfenced":
        attributes = node.attributes
        inner = (attributes.get("separators") or ",").strip()[:1].join(_translate(c, depth + 1).strip() for c in children)
        return f"{attributes.get('open') or '('}{inner}{attributes.get('close') or ')'}"
    return inner


def _base(tex: str) -> str:
    """A base that carries scripts: grouped if it has more than one symbol."""
    tex = tex.strip()
    return tex if len(tex) <= 1 or (tex.startswith("\\") and tex[1:].isalpha()) or tex.startswith(r"\mathrm{") else "{" + tex + "}"
