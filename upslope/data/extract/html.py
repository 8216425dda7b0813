"""HTML → Markdown. One iterative walk over a Lexbor tree: no recursion, so no page is too deep.

Kept: headings, paragraphs, lists, inline code, fenced code (every byte of <pre>), TeX ($…$ and $$…$$), tables (GFM), quotes.
Dropped: scripts, styles, navigation, headers, footers, sidebars, forms, permalinks, line numbers; and, at both ends of the page,
blocks that are nothing but links. Emphasis and link targets are dropped, their text stays.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from selectolax.lexbor import LexborHTMLParser, LexborNode

from upslope.data.extract.landmarks import BLOCKS, HEADERS, HEADINGS, JUNK_SELECTOR, LAYOUT, NO_LANGUAGE, ROOTS, UNCLOSED
from upslope.data.extract.mathml import clean, to_tex
from upslope.data.shards import CODE, MATH, PROSE, TABLE

MATH_CLASS = re.compile(r"(^|[\s_-])(math|tex|latex|formula\w*|equation|mimetex)([\s_-]|$)", re.I)
LANGUAGE = re.compile(r"(?:^|\s)(?:language-|lang-|highlight-source-|highlight-|src-|brush:\s*|sourceCode\s+)([A-Za-z0-9+#_.-]+)")
SPACE = re.compile(r"[ \t\n\r\f]+")
BREAK = re.compile(r" *\x00[ \x00]*")
TEX_INLINE, TEX_DISPLAY = re.compile(r"\\\((.+?)\\\)", re.S), re.compile(r"\\\[(.+?)\\\]", re.S)
TICKS = re.compile(r"`{3,}")
TAG = re.compile(r"<(/?)([A-Za-z][A-Za-z0-9:-]*)[^<>]*>")
MANY, DEEP = 8000, 200
LINKED = 0.8
FEW = 200  # characters: a landmark that yields fewer is not trusted to be the page


@dataclass
class Block:
    """A piece of Markdown that ends up between blank lines. linked: characters of its text that are links."""

    text: str
    kind: int = PROSE
    item: bool = False
    heading: bool = False
    linked: int = 0


@dataclass
class Extracted:
    """Markdown, its spans (start, end, kind) in bytes, and counts that describe it."""

    text: str
    spans: list[tuple[int, int, int]]
    title: str = ""
    lang: str = ""
    link_share: float | None = None
    formulas: int = 0
    tables: int = 0
    headings: int = 0
    code_bytes: int = 0


@dataclass
class _Walk:
    """The state of one walk: finished blocks, the paragraph under way, and the lists and quotes it stands in."""

    math: dict[int, tuple[str, bool]]
    mathjax: bool
    blocks: list[Block] = field(default_factory=list)
    buf: list[str] = field(default_factory=list)
    lists: list[list[int]] = field(default_factory=list)  # a list: [number of the next item or -1, width of its marker, marker due?]
    quotes: int = 0
    links: int = 0
    linked: int = 0
    formulas: int = 0
    tables: int = 0

    def flush(self, lead: str = "") -> None:
        """Ends the paragraph under way."""
        if not self.buf:
            return
        text = SPACE.sub(" ", "".join(self.buf)).strip(" ")
        self.buf.clear()
        linked, self.linked = self.linked, 0
        if "\x00" in text:
            text = BREAK.sub("\n", text).strip("\n")
        if self.mathjax and "\\" in text and ("\\(" in text or "\\[" in text):
            text, n = TEX_INLINE.subn(lambda m: f"${m.group(1).strip()}$", text)
            text, d = TEX_DISPLAY.subn(lambda m: f"$${m.group(1).strip()}$$", text)
            self.formulas += n + d
        if not text:
            return
        if lead:
            self.blocks.append(Block(lead + text.replace("\n", " "), heading=True, linked=linked))
            return
        if not self.lists and not self.quotes:
            self.blocks.append(Block(text, linked=linked))
            return
        first = rest = ""
        for i, level in enumerate(self.lists):
            last = i == len(self.lists) - 1
            rest += " " * level[1]
            first += ("- " if level[0] < 0 else f"{level[0]}. ") if last and level[2] else " " * level[1]
            if last:
                level[2] = 0
        quote = "> " * self.quotes
        self.blocks.append(Block(quote + first + text.replace("\n", "\n" + quote + rest), item=bool(self.lists), linked=linked))

    def block(self, block: Block) -> None:
        """Adds a block that is not a paragraph."""
        self.flush()
        self.linked = 0
        self.blocks.append(block)

    def formula(self, tex: str, display: bool) -> None:
        """Adds a formula, in line or on lines of its own."""
        if not tex:
            return
        self.formulas += 1
        if display:
            self.block(Block(f"$$\n{tex}\n$$", MATH))
        else:
            self.buf.append(f"${tex}$")


def extract(html: str) -> Extracted:
    """Markdown of a page; the empty text where nothing is left. Never raises for bad HTML."""
    html = html.replace("\x00", "")
    tree = LexborHTMLParser(_shallow(html) if html.count("<") > MANY else html)
    body = tree.body
    top = tree.root
    if body is None or top is None:
        return Extracted("", [])
    head = tree.css_first("title")
    title = SPACE.sub(" ", head.text(deep=True)).strip()[:300] if head is not None else ""
    lang = (top.attributes.get("lang") or top.attributes.get("xml:lang") or "")[:16] if top.tag == "html" else ""
    _remove(tree.css(JUNK_SELECTOR))
    _remove([n for n in tree.css(HEADERS) if n.css_first("h1, .title") is None])
    low = html[:200_000].lower()
    mathjax = "mathjax" in low or "katex" in low
    found = tree.css(ROOTS)
    outer = [n for n in found if n.tag != "article"] or (found if len(found) == 1 else [])
    root = outer[0] if outer else body
    walk = _Walk(_formulas(tree) if "math" in low or "katex" in low else {}, mathjax)
    _walk(root, walk)
    if root is not body and sum(len(b.text) for b in walk.blocks) < FEW:
        whole = _Walk(walk.math, mathjax)
        _walk(body, whole)
        walk = whole if len(whole.blocks) > len(walk.blocks) else walk
    return _assemble(walk, title, lang)


def _remove(nodes: list[LexborNode]) -> None:
    """Takes subtrees out of the tree. Only outermost ones: a node inside a destroyed one must not be touched again."""
    chosen = {n.mem_id: n for n in nodes if n.tag not in ("body", "html")}
    outermost = []
    for node in chosen.values():
        above = node.parent
        while above is not None and above.mem_id not in chosen:
            above = above.parent
        if above is None:
            outermost.append(node)
    for node in outermost:
        node.decompose()


def _shallow(html: str) -> str:
    """The page with no element nested in more than `DEEP` of its own kind: the HTML algorithm takes quadratic time in depth."""
    depth: dict[str, int] = {}

    def limit(tag: re.Match[str]) -> str:
        name = tag.group(2).lower()
        if name in UNCLOSED:
            return tag.group()
        if tag.group(1):
            depth[name] = max(0, depth.get(name, 0) - 1)
            return "" if depth[name] >= DEEP else tag.group()
        depth[name] = depth.get(name, 0) + 1
        return "" if depth[name] > DEEP else tag.group()

    return TAG.sub(limit, html)


def _formulas(tree: LexborHTMLParser) -> dict[int, tuple[str, bool]]:
    """Elements of class `math` that hold delimited TeX: node → (TeX, display)."""
    found = {}
    for node in tree.css(".math, .arithmatex, .tex2jax_process, .formula"):
        text = node.text(deep=True).strip()
        if text.startswith(("\\[", "$$")):
            found[node.mem_id] = (clean(text), True)
        elif text.startswith("\\("):
            found[node.mem_id] = (clean(text), node.tag == "div")
        elif node.tag == "div" and text.startswith("\\begin{"):
            found[node.mem_id] = (text, True)
    return found


def _walk(root: LexborNode, w: _Walk) -> None:
    stack: list[tuple[LexborNode, str]] = []
    node = root.first_child
    buf = w.buf
    while True:
        if node is None:
            if not stack:
                break
            node, tag = stack.pop()
            _leave(tag, w)
            node = node.next
            continue
        tag = node.tag or ""
        if tag == "-text":
            text = node.text_content
            if text:
                buf.append(text)
                if w.links:
                    w.linked += len(text.strip())
        elif w.math and node.mem_id in w.math:
            w.formula(*w.math[node.mem_id])
        elif _enter(node, tag, w):
            stack.append((node, tag))
            node = node.first_child
            continue
        node = node.next
    w.flush()


def _leave(tag: str, w: _Walk) -> None:
    """What the end of an element does."""
    if tag in BLOCKS or tag == "li":
        w.flush()
    elif tag == "a":
        w.links -= 1
    elif tag in HEADINGS:
        w.flush(HEADINGS[tag])
    elif tag in ("ul", "ol", "menu"):
        w.flush()
        w.lists.pop()
    elif tag == "blockquote":
        w.flush()
        w.quotes -= 1


def _enter(node: LexborNode, tag: str, w: _Walk) -> bool:
    """What the start of an element does; True if its children are to be walked."""
    if tag in ("span", "em", "strong", "b", "i"):
        return True
    if tag == "a":
        w.links += 1
    elif tag in BLOCKS or tag in HEADINGS:
        w.flush()
    elif tag in ("code", "tt", "kbd", "samp"):
        return _inline_code(node, w)
    elif tag == "pre":
        _code(node, w)
        return False
    elif tag == "li":
        w.flush()
        if w.lists:
            level = w.lists[-1]
            if level[0] >= 0:
                level[0] += 1
            level[2] = 1
    elif tag in ("ul", "ol", "menu"):
        w.flush()
        start = (node.attributes.get("start") or "1") if tag == "ol" else "0"
        w.lists.append([int(start) - 1 if start.isdigit() and start != "0" else 0, 3, 0] if tag == "ol" else [-1, 2, 0])
    elif tag == "br":
        w.buf.append("\x00")
    elif tag == "table":
        return not _table(node, w)
    elif tag == "blockquote":
        w.flush()
        w.quotes += 1
    elif tag == "math":
        w.formula(*to_tex(node))
        return False
    elif tag == "img":
        _image(node, w)
        return False
    elif tag == "script":  # only math/tex ones are left
        w.formula(clean(node.text(deep=True)), "display" in (node.attributes.get("type") or ""))
        return False
    elif tag in ("sup", "sub"):
        return _script(node, tag, w)
    elif tag in ("-comment", "title", "head", "input", "meta", "link"):
        return False
    return True


def _inline_code(node: LexborNode, w: _Walk) -> bool:
    if node.css_first("pre, math, p, div, table, li") is not None:
        return True
    text = SPACE.sub(" ", node.text(deep=True)).strip()
    if text:
        ticks = "``" if "`" in text else "`"
        pad = " " if "`" in text else ""
        w.buf.append(f"{ticks}{pad}{text}{pad}{ticks}")
        if w.links:
            w.linked += len(text)
    return False


def _code(node: LexborNode, w: _Walk) -> None:
    """A fence around every byte of a <pre>; longer than any run of backticks inside."""
    if node.css_first("br") is not None:
        for br in node.css("br"):
            br.replace_with("\n")
    text = node.text(deep=True)
    text = text[:-1] if text.endswith("\n") else text
    if not text.strip():
        return
    fence = "`" * max([3, *(len(m.group()) + 1 for m in TICKS.finditer(text))])
    w.block(Block(f"{fence}{_language(node)}\n{text}\n{fence}", CODE))


def _language(pre: LexborNode) -> str:
    inner = pre.css_first("code")
    node: LexborNode | None = pre
    classes = [inner.attributes.get("class") or ""] if inner is not None else []
    for _ in range(3):
        if node is None or node.tag in ("body", "html"):
            break
        classes.append(node.attributes.get("class") or "")
        node = node.parent
    for names in classes:
        found = LANGUAGE.search(names)
        name = found.group(1).lower() if found else ""
        if name and name not in NO_LANGUAGE:
            return {"python3": "python", "ipython3": "python", "shell-session": "console"}.get(name, name)
        if "rust" in names.split():
            return "rust"
    return ""


def _image(node: LexborNode, w: _Walk) -> None:
    """Images of formulas carry their TeX in `alt`; other images have no text of their own."""
    attributes = node.attributes
    alt = (attributes.get("data-latex") or attributes.get("alt") or "").strip()
    names = attributes.get("class") or ""
    if not alt or not (attributes.get("data-latex") or alt.startswith(("$", "\\(", "\\[")) or MATH_CLASS.search(names)):
        return
    parent = node.parent.attributes.get("class") or "" if node.parent is not None else ""
    w.formula(clean(alt), alt.startswith(("\\[", "$$")) or "formulaDsp" in names or "formulaDsp" in parent)


def _script(node: LexborNode, tag: str, w: _Walk) -> bool:
    """10<sup>9</sup> is 10^9, not 109; footnote marks go."""
    text = node.text(deep=True).strip()
    if node.css_first("a") is not None and tag == "sup" and len(text) <= 6:
        return False
    if not text or len(text) > 12 or text in ("st", "nd", "rd", "th", "TM", "™", "®") or node.css_first("math, img, code") is not None:
        return True
    mark = "^" if tag == "sup" else "_"
    w.buf.append(mark + (text if text.lstrip("+-−").isalnum() else "{" + text + "}"))
    return False


def _table(table: LexborNode, w: _Walk) -> bool:
    """Adds a table of data as a GFM table; False if it is there for the layout, and its cells are to be walked as blocks."""
    if (table.attributes.get("role") or "") in ("presentation", "none") or any(part.css_first(LAYOUT) is not None for part in table.iter()):
        w.flush()
        return False
    rows: list[list[str]] = []
    header = False
    for tr in table.css("tr"):
        cells: list[str] = []
        heads = 0
        for cell in tr.iter():
            if cell.tag not in ("td", "th"):
                continue
            heads += cell.tag == "th"
            span = cell.attributes.get("colspan") or "1"
            cells += [_cell(cell, w), *[""] * (min(int(span), 50) - 1 if span.isdigit() else 0)]
        if any(cells):
            header = header or (not rows and heads == len([c for c in cells if c]))
            rows.append(cells)
    width = max((len(r) for r in rows), default=0)
    if len(rows) < 2 or width < 2:
        w.flush()
        return False
    caption = table.css_first("caption")
    if caption is not None:
        w.flush()
        w.buf.append(caption.text(deep=True))
    w.flush()
    lines = ["| " + " | ".join(r + [""] * (width - len(r))) + " |" for r in rows]
    lines.insert(1, "|" + " --- |" * width)
    w.tables += 1
    w.block(Block("\n".join(lines), TABLE))
    return True


def _cell(cell: LexborNode, w: _Walk) -> str:
    child = cell.first_child
    if child is None:
        return ""
    if child.next is None and child.tag == "-text":
        text = SPACE.sub(" ", child.text_content or "").strip()
    else:
        inner = _Walk(w.math, w.mathjax)
        _walk(cell, inner)
        w.formulas += inner.formulas
        text = " ".join(b.text.replace("\n", " ") for b in inner.blocks)
    return text.replace("|", "\\|") if "|" in text else text


def _assemble(w: _Walk, title: str, lang: str) -> Extracted:
    """Joins the blocks, without the runs of links at both ends, and notes where each kind begins and ends."""
    blocks = w.blocks
    plain = [b.kind != PROSE or b.linked < LINKED * len(b.text) for b in blocks]
    content = [i for i, p in enumerate(plain) if p and not blocks[i].heading]
    if content:
        first, last = content[0], content[-1]
        blocks = [b for i, b in enumerate(blocks) if (i >= first or (b.heading and plain[i])) and (i <= last or (b.heading and plain[i]))]
        while blocks and blocks[-1].heading:
            blocks = blocks[:-1]
    text: list[str] = []
    spans: list[tuple[int, int, int]] = []
    at = linked = total = code = 0
    for i, b in enumerate(blocks):
        piece = ("" if not i else "\n" if b.item and blocks[i - 1].item else "\n\n") + b.text
        size = len(piece) if piece.isascii() else len(piece.encode())
        text.append(piece)
        if spans and spans[-1][2] == b.kind:
            spans[-1] = (spans[-1][0], at + size, b.kind)
        else:
            spans.append((at, at + size, b.kind))
        at += size
        linked += b.linked
        total += len(b.text)
        code += size if b.kind == CODE else 0
    share = min(1.0, linked / total) if total else None
    return Extracted("".join(text), spans, title, lang, share, w.formulas, w.tables, sum(b.heading for b in blocks), code)
