"""Code on pages: every byte of <pre> in a fence, without line-number gutters, named by the language its classes tell."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from upslope.data.extract.landmarks import NO_LANGUAGE, words_of

if TYPE_CHECKING:
    from selectolax.lexbor import LexborNode

LANGUAGE = re.compile(
    r"(?:^|\s)(?:language-|lang-|highlight-source-|highlight-text-|highlight-|src-|brush:\s*|sourceCode\s+)([A-Za-z0-9+#_.-]+)"
)
NAMED = re.compile(r"^[a-z][a-z0-9+#.-]{0,15}$", re.I)
BARE = words_of("rust python bash sh shell c cpp c++ csharp java javascript js typescript ts go ruby php perl sql json yaml xml html css r")
CODED = words_of("highlight code listing sourceCode src codehilite rust")  # beside one of them a bare name is a language
ABOVE = 6
ALIASES = {"python3": "python", "ipython3": "python", "shell-session": "console", "py": "python", "js": "javascript", "golang": "go"}
TICKS = re.compile(r"`{3,}")
GUTTER = (
    ".lineno, .linenos, .linenodiv, .line-number, .line-numbers-rows, .linenumber, .lineNumber, .ln-num, .gutter, .blob-num,"
    " .hljs-ln-numbers, .headerlink, .viewcode-link, button, script, style, [data-line-number]:empty"
)
LINES = "li, div, p, tr"
ODD = f"br, button, script, style, .headerlink, .viewcode-link, {LINES}"
GUTTERS = ("lineno", "linenumber", "lineNumber", "line-number", "ln-num", "gutter", "blob-num", "hljs-ln")
BLOBS = "td.blob-code, td.line_content, td.hljs-ln-code, td.code > div > .line, td.line-code"


def fence(text: str, language: str = "") -> str:
    """A fence longer than any run of backticks inside; the empty text for blank code."""
    text = text[:-1] if text.endswith("\n") else text
    if not text.strip():
        return ""
    ticks = "`" * max([3, *(len(m.group()) + 1 for m in TICKS.finditer(text))])
    return f"{ticks}{language}\n{text}\n{ticks}"


def gutters(html: str) -> bool:
    """Whether a page may have line numbers in its code."""
    return "<pre" in html and any(sign in html for sign in GUTTERS)


def pre_text(pre: LexborNode, numbered: bool) -> str:
    """The characters of a <pre>: line breaks where <br>, list items or blocks end its lines; gutters gone, if the page may have any."""
    first = pre.first_child
    if first is None:
        return ""
    if first.next is None and first.tag == "-text":
        return first.text_content or ""
    if not numbered and not pre.css(ODD):
        return pre.text(deep=True)
    outermost_removed(pre.css(GUTTER))
    for br in pre.css("br"):
        br.replace_with("\n")
    lines = pre.css(LINES)
    if lines:
        texts = [line.text(deep=True) for line in lines if len(line.css(LINES)) <= 1]  # a node matches inside itself
        loose = len(pre.text(deep=True).strip()) - sum(len(t.strip()) for t in texts)
        if loose <= 2 * len(texts) and sum(t.endswith("\n") for t in texts) * 2 <= len(texts):
            return "\n".join(t.removesuffix("\n") for t in texts)
    return pre.text(deep=True)


def outermost_removed(nodes: list[LexborNode]) -> None:
    """Takes subtrees out of the tree. Only outermost ones: a node inside a destroyed one must not be touched again."""
    if not nodes:
        return
    chosen = {n.mem_id for n in nodes}
    outermost = []
    for node in nodes:
        above = node.parent
        while above is not None and above.mem_id not in chosen:
            above = above.parent
        if above is None:
            outermost.append(node)
    for node in outermost:
        node.decompose()


def blob(table: LexborNode) -> str:
    """The code of a table that has one line of code per row (GitHub, GitLab, highlight.js line numbers), else the empty text."""
    lines = table.css(BLOBS)
    if not lines:
        return ""
    outermost_removed([n for line in lines for n in line.css(GUTTER)])
    return fence("\n".join(line.text(deep=True).strip("\n") for line in lines), language(table))


def language(node: LexborNode) -> str:
    """The language of code, in lower case, from the classes and data attributes of the element, its <code> and the elements around it."""
    inner = node.css_first("code")
    at: LexborNode | None = node
    chain = [inner] if inner is not None else []
    for _ in range(ABOVE):
        if at is None or at.tag in ("body", "html"):
            break
        chain.append(at)
        at = at.parent
    for n in chain:
        attributes = n.attributes
        names = attributes.get("class") or ""
        told = attributes.get("data-lang") or attributes.get("data-language") or ""
        found = LANGUAGE.search(names)
        name = found.group(1).lower() if found else told.lower() if NAMED.match(told) else ""
        if not name and (n.tag in ("pre", "code") or not CODED.isdisjoint(names.split())):
            name = next((c.lower() for c in names.split() if c.lower() in BARE), "")
        if name and name not in NO_LANGUAGE:
            return ALIASES.get(name, name)
    return ""
