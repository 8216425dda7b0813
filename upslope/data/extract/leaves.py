"""The leaves of MathML: identifiers, numbers, operators, text and spaces; and how to see through wrappers around one element."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from upslope.data.extract.symbols import FUNCTIONS, LIMITS, NAMES
from upslope.data.extract.tex import style, symbols

if TYPE_CHECKING:
    from selectolax.lexbor import LexborNode

DEPTH = 60
FENCES = frozenset("([{⟨⌊⌈⟦〈)]}⟩⌋⌉⟧〉|‖∣∥/\\<>↑↓")
TEX = re.compile(r"(^|[^a-z])(la)?tex($|[^a-z])", re.I)
UNSEEN = frozenset({"annotation", "annotation-xml", "none", "mprescripts", "mphantom", "maligngroup", "malignmark", "-comment"})
WRAPPERS = frozenset({"mrow", "mstyle", "mpadded", "math", "semantics"})
VARIANTS = {
    "normal": ("mathrm",),
    "bold": ("mathbf",),
    "italic": ("mathit",),
    "bold-italic": ("boldsymbol",),
    "double-struck": ("mathbb",),
    "script": ("mathcal",),
    "bold-script": ("boldsymbol", "mathcal"),
    "fraktur": ("mathfrak",),
    "bold-fraktur": ("boldsymbol", "mathfrak"),
    "sans-serif": ("mathsf",),
    "bold-sans-serif": ("boldsymbol", "mathsf"),
    "sans-serif-italic": ("mathsf",),
    "sans-serif-bold-italic": ("boldsymbol", "mathsf"),
    "monospace": ("mathtt",),
}
TEXT_FONTS = {"bold": "textbf", "italic": "textit", "monospace": "texttt", "sans-serif": "textsf"}
TEXT_ESCAPES = {**{c: "\\" + c for c in "{}#$%&_"}, "\\": r"\textbackslash{}", "^": r"\^{}", "~": r"\~{}", "\u00a0": " "}
SIZES = ((2.25, r"\Bigg"), (1.8, r"\bigg"), (1.4, r"\Big"), (1.1, r"\big"))
SPACES = ((1.5, r"\qquad"), (0.75, r"\quad"), (0.4, r"\enspace"), (0.25, r"\;"), (0.2, r"\:"), (0.01, r"\,"))
NAMED_SPACES = {"thinmathspace": 0.167, "mediummathspace": 0.222, "thickmathspace": 0.278, "verythickmathspace": 0.3}
UNITS = {"em": 1.0, "ex": 0.43, "px": 0.06, "pt": 0.1}
LENGTH = re.compile(r"\+?(-?[\d.]+)\s*([a-z]+)")


def only(node: LexborNode) -> LexborNode:
    """What is left if a node is only a wrapper around one other."""
    for _ in range(DEPTH):
        if node.tag not in WRAPPERS or (node.tag == "semantics" and annotation(node)) or node.attributes.get("mathvariant"):
            return node
        inner = None
        for child in node.iter(include_text=True):
            if child.tag in UNSEEN or (child.tag == "-text" and not (child.text_content or "").strip()):
                continue
            if inner is not None or child.tag == "-text":
                return node
            inner = child
        if inner is None:
            return node
        node = inner
    return node


def annotation(semantics: LexborNode) -> str:
    for child in semantics.iter():
        if child.tag == "annotation" and TEX.search(child.attributes.get("encoding") or ""):
            return child.text(deep=True).strip()
    return ""


def operator(node: LexborNode | None) -> str | None:
    """The text of a node that is, without its wrappers, an operator."""
    node = only(node) if node is not None else None
    return node.text(deep=True).strip() if node is not None and node.tag == "mo" else None


def token(node: LexborNode, tag: str) -> str:
    text = node.text(deep=True).strip(" \t\r\n")
    variant = node.attributes.get("mathvariant")
    words = re.sub(r"[\s\u2006\u2009]+", " ", text)
    if tag != "mn" and variant in (None, "normal", "italic") and (len(text) > 1 or variant == "normal"):
        if text in FUNCTIONS or words in LIMITS:
            return LIMITS.get(words) or f"\\{text}"
        letters = words.replace(" ", "").replace("-", "")
        if len(letters) > 1 and letters.isalnum() and not letters.isdecimal() and letters.isascii():
            name = words.replace(" ", r"\,")
            if variant == "italic":
                return rf"\mathit{{{name}}}"
            if tag == "mo" or _applied(node):
                return rf"\operatorname{'*' if node.attributes.get('movablelimits') == 'true' else ''}{{{name}}}"
            return rf"\mathrm{{{name}}}"
    if tag == "mo" and text == "||":
        return r"\|"
    tex = symbols(text)
    if tag == "mo" and text in FENCES and (size := size_of(node)):
        return size + tex
    plain = tag == "mo" or (variant == "italic" and len(text) == 1) or (variant == "normal" and not text.isalpha())
    if not tex or plain or not variant or variant not in VARIANTS:
        return tex
    greek = text in NAMES
    if greek and variant == "bold":
        return rf"\boldsymbol{{{tex}}}"
    return tex if greek and variant == "normal" else style(tex, VARIANTS[variant])


def _applied(node: LexborNode) -> bool:
    """Whether U+2061 (function application) follows."""
    after = node.next
    while after is not None and after.tag == "-text":
        after = after.next
    return after is not None and after.tag == "mo" and after.text().strip() == "\u2061"


def text(node: LexborNode, tag: str) -> str:
    text = re.sub(r"[ \t\r\n]+", " ", node.text(deep=True))
    text = text.strip(" ") if text.strip(" ") else ""
    if not text.strip():
        return r"\ " if text else ""
    if text.strip() in NAMES:
        return NAMES[text.strip()]
    font = TEXT_FONTS.get(node.attributes.get("mathvariant") or "", "text")
    text = "".join(TEXT_ESCAPES.get(ch, ch) for ch in text)
    return rf"\{font}{{{text}}}" if tag == "mtext" else rf"\text{{``{text}''}}"


def _length(value: str) -> float:
    """A length in em; 0 if it is not understood."""
    if value in NAMED_SPACES:
        return NAMED_SPACES[value]
    found = LENGTH.fullmatch(value.strip())
    try:
        return float(found.group(1)) * UNITS.get(found.group(2), 0.0) if found else 0.0
    except ValueError:
        return 0.0


def space(node: LexborNode) -> str:
    if node.attributes.get("linebreak") == "newline":
        return r"\\ "
    width = _length(node.attributes.get("width") or "")
    return next((tex for least, tex in SPACES if width >= least), "")


def size_of(node: LexborNode) -> str:
    """\\big and its like, for a delimiter of a set size."""
    attributes = node.attributes
    size = _length(attributes.get("minsize") or "") if attributes.get("minsize") == attributes.get("maxsize") else 0.0
    return next((tex for least, tex in SIZES if size >= least), "")
