"""Where formulas stand in a page, in every form that pages carry them, and the TeX of each, once.

MathML (also in KaTeX, MathJax and Wikipedia markup), MathJax scripts and containers, elements and images that hold TeX in their text or
in an attribute, and delimiters in running text on pages that load MathJax or KaTeX. What is drawn twice is read once: the source wins.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import unquote

from upslope.data.extract.mathml import to_tex
from upslope.data.extract.tex import clean, symbols

if TYPE_CHECKING:
    from selectolax.lexbor import LexborHTMLParser, LexborNode

SIGNS = ("math", "Math", "MATH", "katex", "KaTeX", "mjx-", "data-tex", "data-latex", "ql-formula", "formula", "arithmatex")
ENGINES = ("MathJax", "mathjax", "katex", "KaTeX", "tex-mml-chtml")
DOLLAR = re.compile(r"""inlineMath\W[^;]{0,80}?\[\s*(['"])\$\1|left\W{1,4}(['"])\$\2|"\$":\s*"\$"|pandoc|nbconvert|jupyter""")
PREFIXED = re.compile(r"<(/?)(?:m|mml|math):(?=[a-z])")
SELECTOR = (
    "math, script[type^='math/'], mjx-container, .MathJax, .MathJax_Display, .MathJax_SVG, .MathJax_SVG_Display, .MathJax_CHTML, "
    ".mjx-chtml, .katex-display, .katex, .katex-error, .mwe-math-element, [data-tex], [data-latex], .ql-formula[data-value], "
    "tex-math, d-math, .math, .arithmatex, .tex2jax_process, .formula"
)
RENDERED = ("MathJax", "MathJax_Display", "MathJax_SVG", "MathJax_SVG_Display", "MathJax_CHTML", "mjx-chtml")
HOLDERS = frozenset({"math", "arithmatex", "tex2jax_process", "formula"})
IMAGE = re.compile(r"(^|[\s_-])(math|tex|latex|formula\w*|equation|mimetex|mwe-math-\S+)([\s_-]|$)", re.I)
ADDRESS = re.compile(
    r"(?:latex\.php\?(?:[^\"]*&)?latex=|codecogs\.com/[^?\"]*\?|(?:mathtex|mimetex)\.cgi\?|chart\?(?:[^\"]*&)?chl=|equation\?(?:[^\"]*&)?tex=)([^\"]+)"
)
NO_TEX = re.compile(r"\.(?:png|gif|svg|jpe?g)$|^(?:image|equation|formula|math|picture)\b[\s\d.:()-]*$", re.I)
WORDS = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{4,}")
TEX_SIGNS = re.compile(r"[\\^_{}=]")
MATHY = re.compile(r"[\\^_{}=<>+*/|-]")
DELIMITED = re.compile(
    r"(?<!\\)\\\((?P<inline>(?:[^\\]|\\[^()]){1,4000})\\\)|(?<!\\)\\\[(?P<display>(?:[^\\]|\\[^\[\]]){1,8000})\\\]"
    r"|(?<!\\)\$\$(?P<dollars>[^$]{1,8000})\$\$"
    r"|\\begin\{(?P<name>equation|align|gather|multline|eqnarray|alignat|flalign|displaymath|math)(?P<star>\*?)\}"
    r"(?P<body>.{1,16000}?)\\end\{(?P=name)(?P=star)\}",
    re.S,
)
DOLLARED = re.compile(r"(?<![\\$\w])\$(?![\s$])([^$\x04]{1,1000}?)(?<![\s\\])\$(?![\d$])")
PLAIN = frozenset({"equation", "displaymath", "math"})  # environments that only say where the formula stands
HIDE = str.maketrans({" ": "\x03", "\t": "\x03", "\n": "\x05", "\r": None, "\x00": "\x05"})
REVEAL = str.maketrans({"\x03": " ", "\x04": None, "\x05": "\n"})
DISPLAY = "\x04"
PIPES = re.compile(r"\$\$.+?\$\$|\$[^$]+\$|\|", re.S)


class Formula(NamedTuple):
    """TeX without delimiters, and whether it stands in a display of its own."""

    tex: str
    display: bool


def plain_names(html: str) -> str:
    """Pages that write MathML with a namespace prefix (`m:math`) get it without, as HTML knows it."""
    return PREFIXED.sub(r"<\1", html) if ":math" in html and PREFIXED.search(html) else html


def delimiters(html: str) -> str:
    """Which delimiters in text are mathematics: "" none, "\\\\" those of TeX, "$" also single dollars."""
    if not any(name in html for name in ENGINES):
        return ""
    return "$" if DOLLAR.search(html) else "\\"


def find(tree: LexborHTMLParser, html: str) -> dict[int, Formula]:
    """The elements that are formulas: node → formula. An element in it stands for all that is below it; "" where nothing is to be said.

    Classes of found elements are taken away, so that no rule on classes removes them.
    """
    found: dict[int, Formula] = {}
    if not any(sign in html for sign in SIGNS):
        return found
    done: set[int] = set()
    clear: set[int] = set()
    for node in tree.css(SELECTOR):
        if node.mem_id in done or _below(node, done, clear):
            continue
        formula = _formula(node)
        if formula is None:
            continue
        done.add(node.mem_id)
        found[node.mem_id] = formula
        if "class" in node.attributes:
            del node.attrs["class"]
    return found


def _below(node: LexborNode, done: set[int], clear: set[int]) -> bool:
    """Whether an element is inside one that is done. What was climbed through is remembered in both sets: nodes come in document order."""
    path: list[int] = []
    above = node.parent
    while above is not None and (at := above.mem_id) not in clear:
        if at in done:
            done.update(path)
            return True
        path.append(at)
        above = above.parent
    clear.update(path)
    return False


def _formula(node: LexborNode) -> Formula | None:
    """What one element says; None if it is no formula itself (its descendants may be), an empty one if it is to be passed over."""
    tag, attributes = node.tag or "", node.attributes
    classes = (attributes.get("class") or "").split()
    if tag == "math":
        return Formula(*to_tex(node))
    if tag == "script":
        return _script(node, attributes.get("type") or "")
    if tag == "img":
        return None
    if tag == "mjx-container":
        return _container(node, attributes.get("display") == "true")
    if any(name in classes for name in RENDERED):
        return _rendered(node, any("isplay" in name for name in classes))
    if "katex-display" in classes or "katex" in classes:
        return _katex(node, "katex-display" in classes)
    if "katex-error" in classes:
        return Formula(clean(node.text(deep=True)), False)
    if "mwe-math-element" in classes:
        return _wikipedia(node)
    value = attributes.get("data-tex") or attributes.get("data-latex") or (attributes.get("data-value") if "ql-formula" in classes else "")
    if value and value.strip():
        return Formula(clean(value), tag == "div" or any("block" in c or "display" in c for c in classes) or _delimited(value)[1])
    if tag in ("tex-math", "d-math", "dt-math"):
        text = node.text(deep=True)
        return Formula(clean(text), "block" in attributes or _delimited(text)[1])
    return _holder(node, tag, classes) if HOLDERS.intersection(classes) else None


def _script(node: LexborNode, kind: str) -> Formula | None:
    text, display = node.text(deep=True), "display" in kind
    if kind.startswith("math/mml"):
        return _parsed(text, display)
    return Formula(clean(text), display) if kind.startswith(("math/tex", "math/latex")) else None


def _parsed(mathml: str, display: bool) -> Formula | None:
    from selectolax.lexbor import LexborHTMLParser

    inner = LexborHTMLParser(plain_names(mathml)).css_first("math")
    if inner is None:
        return None
    tex, block = to_tex(inner)
    return Formula(tex, display or block)


def _container(node: LexborNode, display: bool) -> Formula:
    """MathJax 3 and 4: `data-latex`, else the assistive MathML, else the characters that are drawn."""
    for holder in (node, node.css_first("mjx-math[data-latex], svg [data-latex]")):
        if holder is not None and (tex := holder.attributes.get("data-latex")):
            return Formula(clean(tex), display)
    inner = node.css_first("math")
    if inner is not None:
        tex, block = to_tex(inner)
        return Formula(tex, display or block)
    names = [re.search(r"(?:^|\s)mjx-c([0-9A-F]{2,5})(?:\s|$)", c.attributes.get("class") or "") for c in node.css("mjx-c")]
    return Formula(symbols("".join(chr(int(n.group(1), 16)) for n in names if n)), display)


def _rendered(node: LexborNode, display: bool) -> Formula | None:
    """MathJax 2: a drawing with its script after it is passed over; else its MathML counts."""
    after = node.next
    for _ in range(3):
        while after is not None and after.tag in ("-text", "-comment"):
            after = after.next
        if after is None:
            break
        if after.tag == "script" and (after.attributes.get("type") or "").startswith("math/"):
            return Formula("", False)
        after = after.next
    holder = node if "data-mathml" in node.attributes else node.css_first("[data-mathml]")
    if holder is not None and (text := holder.attributes.get("data-mathml")):
        return _parsed(text, display)
    inner = node.css_first("math")
    if inner is None:
        return None if node.css_first("script[type^='math/']") is not None else Formula("", False)
    tex, block = to_tex(inner)
    return Formula(tex, display or block)


def _katex(node: LexborNode, display: bool) -> Formula:
    inner = node.css_first("math")
    if inner is not None:
        tex, block = to_tex(inner)
        return Formula(tex, display or block)
    drawn = node.css_first(".katex-html")
    return Formula(clean(_drawn(drawn if drawn is not None else node, 0)), display)


def _drawn(node: LexborNode, depth: int) -> str:
    """TeX of KaTeX's HTML, where there is nothing else: scripts, fractions and roots from how its boxes are stacked."""
    if node.tag == "-text":
        return symbols((node.text_content or "").strip())
    names = (node.attributes.get("class") or "").split()
    if depth > 60 or "vlist-s" in names or "strut" in names or "pstrut" in names:
        return ""
    if "msupsub" in names or "mfrac" in names:
        stack = node.css_first(".vlist")
        rows = [t for t in (_drawn(c, depth + 1) for c in stack.iter()) if t] if stack is not None else []
        if "mfrac" in names:
            return rf"\frac{{{rows[1]}}}{{{rows[0]}}}" if len(rows) == 2 else "".join(rows)
        low = node.css_first(".vlist-t2") is not None
        marks = ("_", "^") if low else ("^",)
        return "".join(f"{mark}{{{row}}}" for mark, row in zip(marks, rows, strict=False))
    inner = ""
    for child in node.iter(include_text=True):
        piece = _drawn(child, depth + 1)
        inner += (" " if re.search(r"\\[A-Za-z]+$", inner) and piece[:1].isalnum() else "") + piece
    return rf"\sqrt{{{inner}}}" if "sqrt" in names else inner


def _wikipedia(node: LexborNode) -> Formula | None:
    display = node.css_first(".mwe-math-mathml-display, .mwe-math-fallback-image-display") is not None
    display = display or "mwe-math-element-block" in (node.attributes.get("class") or "")
    inner = node.css_first("math")
    if inner is not None:
        tex, block = to_tex(inner)
        return Formula(tex, display or block)
    picture = node.css_first("img")
    formula = image(picture) if picture is not None else None
    return Formula(formula.tex, display) if formula is not None else None


def _holder(node: LexborNode, tag: str, classes: list[str]) -> Formula | None:
    """Elements of class `math` and its like that hold TeX as text."""
    for mark in node.css(".eqno, .headerlink, .permalink"):
        mark.decompose()
    text = node.text(deep=True).strip()
    delimited, display = _delimited(text)
    if delimited:
        return Formula(clean(text), display or tag == "div")
    if text.startswith("\\begin{") and tag == "div":
        return Formula(text, True)
    if "math" in classes and ("inline" in classes or "display" in classes) and node.css_first("*") is None and text:
        return Formula(clean(text), "display" in classes)
    return None


def _delimited(text: str) -> tuple[bool, bool]:
    """(whether a text is one formula in its delimiters, whether these are of a display)."""
    text = text.strip()
    for left, right, display in (("\\[", "\\]", True), ("\\(", "\\)", False), ("$$", "$$", True), ("$", "$", False)):
        if text.startswith(left) and text.endswith(right) and len(text) > len(left) + len(right):
            return right not in re.sub(r"\{[^{}]*\}", "", text[len(left) : -len(right)]).replace("\\\\", ""), display
    return False, False


def image(node: LexborNode) -> Formula | None:
    """The formula that an image shows, by its `data-latex`, `alt` or `title`, or by the TeX in its address; None for other images."""
    attributes = node.attributes
    names = attributes.get("class") or ""
    known = attributes.get("data-latex") or attributes.get("data-tex")
    address = ADDRESS.search(attributes.get("src") or "")
    alt = (known or attributes.get("alt") or attributes.get("title") or "").strip()
    delimited, display = _delimited(alt)
    if not (known or delimited):
        if address is None and not IMAGE.search(names):
            return None
        words = not TEX_SIGNS.search(alt) and len(WORDS.findall(alt)) > 1
        if not alt or NO_TEX.search(alt) or words:
            alt = unquote(address.group(1).split("&")[0].replace("+", " ")).strip() if address is not None else ""
    if not alt:
        return None
    above = (node.parent.attributes.get("class") or "") if node.parent is not None else ""
    display = display or any("formulaDsp" in c or "image-display" in c for c in (names, above))
    return Formula(clean(alt), display)


def typeset(text: str, marks: str) -> tuple[str, int]:
    """(text with the formulas between delimiters written as `$…$`, or as a display between `DISPLAY` marks; how many).

    marks: as `delimiters` says. Spaces in formulas are hidden from what joins lines; `reveal` shows them again.
    """
    count = 0

    def put(found: re.Match[str]) -> str:
        nonlocal count
        count += 1
        if found["inline"] is not None or found["name"] == "math":
            return "$" + clean(found["inline"] or found["body"]).translate(HIDE) + "$"
        body = found["display"] or found["dollars"] or found["body"]
        if found["dollars"] is not None and _prose(body):
            count -= 1
            return found.group()
        if found["name"] and found["name"] not in PLAIN:
            body = found.group()
        return f"{DISPLAY}$$\x05{clean(body).translate(HIDE)}\x05$${DISPLAY}"

    def keep(found: re.Match[str]) -> str:
        nonlocal count
        inner = found.group(1)
        if _prose(inner):
            return found.group()
        count += 1
        return found.group().translate(HIDE)

    text = DELIMITED.sub(put, text.replace(DISPLAY, ""))
    if marks == "$" and "$" in text:
        pieces = text.split(DISPLAY)
        pieces[::2] = [DOLLARED.sub(keep, piece) for piece in pieces[::2]]
        text = DISPLAY.join(pieces)
    return text, count


def _prose(inner: str) -> bool:
    """Whether what stands between two dollars is words and prices rather than a formula."""
    if "\\" in inner:
        return False
    odd = inner.count("(") != inner.count(")") or (" " in inner and not MATHY.search(inner))
    return odd or WORDS.search(inner) is not None


def hide(tex: str) -> str:
    """TeX for running text: its spaces are out of reach of what joins lines."""
    return re.sub(r"\s*\n\s*", " ", tex).translate(HIDE)


def reveal(text: str) -> str:
    """Text with the spaces of its formulas."""
    return text.translate(REVEAL) if "\x03" in text or "\x05" in text or DISPLAY in text else text


def in_cell(text: str) -> str:
    """Text for a cell of a GFM table: a pipe ends a cell, also inside a formula, where TeX has another word for it."""
    if "$" not in text:
        return text.replace("|", "\\|")
    return PIPES.sub(lambda m: m.group().replace("\\|", "\\Vert ").replace("|", "\\vert ") if m.group()[0] == "$" else "\\|", text)
