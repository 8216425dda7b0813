"""HTML → Markdown. One iterative walk over a Lexbor tree: no recursion, so no page is too deep.

The walk turns the page into blocks of Markdown and notes which boxes (block elements) they stand in; `body.decide` then says which
blocks are the page's own. Kept: headings, paragraphs, lists, inline code, fenced code (every byte of <pre>), TeX ($…$ and $$…$$),
tables (GFM), quotes. Dropped: scripts, styles, what surrounds the content, permalinks, line numbers. Emphasis and link targets are
dropped, their text stays.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from selectolax.lexbor import LexborHTMLParser, LexborNode

from upslope.data.extract import body, fences, tables
from upslope.data.extract import math as tex
from upslope.data.extract.body import Block, Box
from upslope.data.extract.landmarks import (
    AROUND,
    ARTICLE,
    BLOCKS,
    COMMENT,
    DROP,
    HEADER,
    HEADINGS,
    JUNK,
    JUNK_TAGS,
    LOOSE,
    META,
    ROLES,
    SKIPPED_TAGS,
    WORDY,
    hints,
    words_of,
)
from upslope.data.extract.shallow import shallow
from upslope.data.shards import CODE, MATH, TABLE

SPACE = re.compile(r"[ \t\n\r\f]+")
BREAK = re.compile(r" *\x00[ \x00]*")
UNSEEN = re.compile(r"(?:display\s*:\s*none|visibility\s*:\s*hidden)", re.I)


@dataclass
class Extracted:
    """Markdown, its spans (start, end, kind) in bytes, and counts that describe it.

    method: what told content from surroundings: `landmark` (a documentation generator's own element), `content` (density and names of
    boxes), `recall` (everything but surroundings, where the others found little), `all` (nothing was told apart).
    """

    text: str
    spans: list[tuple[int, int, int]]
    title: str = ""
    lang: str = ""
    link_share: float | None = None
    formulas: int = 0
    tables: int = 0
    headings: int = 0
    code_bytes: int = 0
    method: str = ""


@dataclass
class _Walk:
    """The state of one walk: finished blocks and boxes, the paragraph under way, and the boxes, lists and quotes it stands in."""

    math: dict[int, tex.Formula]
    delimiters: str
    numbered: bool
    blocks: list[Block] = field(default_factory=list)
    boxes: list[Box] = field(default_factory=list)
    buf: list[str] = field(default_factory=list)
    lists: list[list[int]] = field(default_factory=list)  # a list: [number of the next item or -1, width of its marker, marker due?]
    box: int = -1
    quotes: int = 0
    links: int = 0
    linked: int = 0
    formulas: int = 0
    tables: int = 0

    def flush(self, lead: str = "") -> None:
        """Ends the paragraph under way."""
        if not self.buf:
            return
        text = "".join(self.buf)
        self.buf.clear()
        n = 0
        if self.delimiters and ("\\" in text or "$" in text):
            text, n = tex.typeset(text, self.delimiters)
            self.formulas += n
        text = SPACE.sub(" ", text).strip(" ")
        linked, self.linked = self.linked, 0
        if "\xad" in text:  # soft hyphens
            text = text.replace("\xad", "")
        if "\x00" in text:
            text = BREAK.sub("\n", text).strip("\n")
        if n and not lead and tex.DISPLAY in text:
            self._displays(text, linked)
            return
        text = tex.reveal(text)
        if not text or text.isspace():
            return
        if lead:
            self.blocks.append(Block(lead + text.replace("\n", " "), heading=len(lead) - 1, linked=linked))
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
        text = quote + first + text.replace("\n", "\n" + quote + rest)
        self.blocks.append(Block(text, item=bool(self.lists), linked=linked))

    def _displays(self, text: str, linked: int) -> None:
        """A paragraph around displayed formulas: blocks of their own."""
        for i, piece in enumerate(text.split(tex.DISPLAY)):
            if i % 2:
                self.blocks.append(Block(tex.reveal(piece), MATH))
            elif piece.strip():
                self.buf.append(piece)
                self.linked, linked, marks, self.delimiters = linked, 0, self.delimiters, ""
                self.flush()
                self.delimiters = marks

    def block(self, block: Block) -> None:
        """Adds a block that is not a paragraph."""
        self.flush()
        self.linked = 0
        self.blocks.append(block)

    def formula(self, formula: tex.Formula) -> None:
        """Adds a formula, in line or on lines of its own."""
        if not formula.tex:
            return
        self.formulas += 1
        if formula.display:
            self.block(Block(f"$$\n{formula.tex}\n$$", MATH))
        else:
            self.buf.append(f"${tex.hide(formula.tex)}$")

    def open(self, tag: str, hint: int) -> None:
        """Enters a box."""
        self.boxes.append(Box(tag, hint, len(self.blocks), -1, self.box))
        self.box = len(self.boxes) - 1

    def close(self) -> None:
        """Leaves the box that was entered last."""
        if self.buf:
            self.flush()
        box = self.boxes[self.box]
        box.end = len(self.blocks)
        self.box = box.parent


def extract(html: str, *, title: bool = True) -> Extracted:
    """Markdown of a page; the empty text where nothing is left. Never raises for bad HTML.

    title: whether the heading that names the page is part of the text; gold bodies of articles leave it out.
    """
    html = tex.plain_names(html.replace("\x00", ""))
    html = shallow(html)
    tree = LexborHTMLParser(html)
    page, top = tree.body, tree.root
    if page is None or top is None:
        return Extracted("", [])
    head = tree.css_first("title")
    name = SPACE.sub(" ", head.text(deep=True)).strip()[:300] if head is not None else ""
    lang = (top.attributes.get("lang") or top.attributes.get("xml:lang") or "")[:16] if top.tag == "html" else ""
    walk = _Walk(tex.find(tree, html), tex.delimiters(html), fences.gutters(html))
    _walk(page, walk)
    for box in walk.boxes:
        box.end = len(walk.blocks) if box.end < 0 else box.end
    chosen = body.decide(walk.blocks, walk.boxes, name, body.origin(html), title)
    return _assemble([walk.blocks[i] for i in chosen.keep], walk, name, lang, chosen.method)


BOXED, NOISY = 1, 2  # an element that is a box; one whose text counts as a link's
PLAIN, INLINE, FLOW, LINK, BOX, SECTION, SKIPPED = (1 << i for i in range(7))
"""What a tag is: without names of note; changes nothing; ends a paragraph and does no more; a link; a box if it says something; a box
anyway; never text."""
KINDS = dict.fromkeys(SKIPPED_TAGS, SKIPPED)
for _kind, _tags in (
    (PLAIN, "em strong b i u font tbody thead tr big small center"),
    (INLINE, "span em strong b i u font big small cite abbr var label"),
    (FLOW, BLOCKS),
    (LINK, "a"),
    (BOX, BLOCKS | words_of("ul ol menu li blockquote table")),
    (SECTION, "div section article main header ul ol dl td li blockquote table details"),
):
    for _tag in _tags.split() if isinstance(_tags, str) else _tags:
        KINDS[_tag] = KINDS.get(_tag, 0) | _kind


def _walk(root: LexborNode, w: _Walk) -> None:
    stack: list[tuple[LexborNode, str, int, int]] = []
    node = root.first_child
    buf = w.buf
    while True:
        if node is None:
            if not stack:
                break
            node, tag, kind, state = stack.pop()
            if kind & FLOW:
                if buf:
                    w.flush()
            elif kind & LINK:
                w.links -= 1
            elif not kind & INLINE:
                _leave(tag, w)
            if state == BOXED:
                w.close()
            elif state == NOISY:
                w.links -= 1
            node = node.next
            continue
        tag = node.tag or ""
        if tag == "-text":
            text = node.text_content
            if text and (buf or not text.isspace()):
                buf.append(text)
                if w.links:
                    w.linked += len(text.strip())
        elif w.math and node.mem_id in w.math:
            w.formula(w.math[node.mem_id])
        elif (kind := KINDS.get(tag, 0)) != SKIPPED:
            attributes = node.attributes if not kind & PLAIN else None
            hint = _hint(node, tag, attributes) if attributes or tag in JUNK_TAGS else 0
            enter = hint != DROP
            if not enter or kind & INLINE:
                pass
            elif kind & FLOW:
                if buf:
                    w.flush()
            elif kind & LINK:
                w.links += 1
            else:
                enter = _enter(node, tag, w)
            if enter:
                state = 0
                if kind & BOX:
                    if hint or kind & SECTION:
                        w.open(tag, hint)
                        state = BOXED
                elif hint & (JUNK | META | COMMENT):
                    w.links += 1
                    state = NOISY
                stack.append((node, tag, kind, state))
                node = node.first_child
                continue
        elif tag == "button" and node.parent is not None and node.parent.tag in HEADINGS:
            stack.append((node, tag, INLINE, 0))
            node = node.first_child
            continue
        node = node.next
    w.flush()


def _hint(node: LexborNode, tag: str, attributes: dict[str, str | None] | None) -> int:
    """What an element says about itself by its tag, role, names and style."""
    sure, hint = JUNK_TAGS.get(tag, 0), 0
    if attributes:
        get = attributes.get
        names, ident = get("class"), get("id")
        if names:
            hint = hints(names)
        if ident and tag != "section" and not (names and "section" in names):
            hint |= hints(ident)
        if hint & DROP:
            return DROP
        if "role" in attributes:
            sure |= ROLES.get(get("role") or "", 0)
        unseen = "style" in attributes and UNSEEN.search(get("style") or "") is not None
        if "hidden" in attributes or unseen:
            if not KINDS.get(tag, 0) & BOX:
                return DROP
            sure |= LOOSE if unseen else JUNK
        elif get("aria-hidden") == "true":
            sure |= LOOSE
        if get("itemprop") == "articleBody":
            hint |= ARTICLE
        hint = hint & ~WORDY | sure if sure & AROUND else hint | sure
    else:
        hint = sure
    if hint & HEADER and node.css_first(".title") is not None:
        hint &= ~HEADER
    if tag == "figure" and node.css_first("pre, table, blockquote") is None:
        hint |= META
    return hint


def _leave(tag: str, w: _Walk) -> None:
    """What the end of an element does."""
    if tag == "li":
        w.flush()
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
    if tag in HEADINGS:
        w.flush()
    elif tag in ("code", "tt", "kbd", "samp"):
        return _inline_code(node, w)
    elif tag == "pre":
        if code := fences.fence(fences.pre_text(node, w.numbered), fences.language(node)):
            w.block(Block(code, CODE))
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
    elif tag == "img":
        formula = tex.image(node)
        if formula is not None:
            w.formula(formula)
        return False
    elif tag in ("sup", "sub"):
        return _script(node, tag, w)
    return True


def _inline_code(node: LexborNode, w: _Walk) -> bool:
    child = node.first_child
    while child is not None and child.next is None and child.tag == "span":
        child = child.first_child
    simple = child is None or (child.next is None and child.tag == "-text")
    if not simple and node.css_first("pre, math, p, div, table, li") is not None:
        return True
    text = SPACE.sub(" ", node.text(deep=True)).strip()
    if text:
        ticks = "``" if "`" in text else "`"
        pad = " " if "`" in text else ""
        w.buf.append(f"{ticks}{pad}{text}{pad}{ticks}")
        if w.links:
            w.linked += len(text)
    return False


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
    w.flush()
    if tables.is_layout(table):
        return False
    if code := fences.blob(table):
        w.block(Block(code, CODE))
        return True
    inner = _Walk(w.math, w.delimiters, w.numbered)
    rows = tables.grid(table, lambda cell: _cell(cell, inner))
    if len(rows) < 2 or len(rows[0]) < 2:
        return False
    caption = table.css_first("caption")
    if caption is not None:
        w.buf.append(caption.text(deep=True))
        w.flush()
    w.tables += 1
    w.formulas += inner.formulas
    w.block(Block(tables.gfm(rows), TABLE, linked=inner.linked))
    return True


def _cell(cell: LexborNode, table: _Walk) -> str:
    child = cell.first_child
    if child is None:
        return ""
    if child.next is None and child.tag == "-text":
        text = SPACE.sub(" ", child.text_content or "").strip()
    else:
        inner = _Walk(table.math, table.delimiters, table.numbered)
        _walk(cell, inner)
        table.formulas += inner.formulas
        table.linked += sum(b.linked for b in inner.blocks)
        text = " ".join(b.text.replace("\n", " ") for b in inner.blocks)
        if inner.formulas and "|" in text:
            return tex.in_cell(text)
    return text.replace("|", "\\|") if "|" in text else text


def _assemble(blocks: list[Block], w: _Walk, title: str, lang: str, method: str) -> Extracted:
    """Joins the blocks and notes where each kind begins and ends."""
    text: list[str] = []
    spans: list[tuple[int, int, int]] = []
    at = linked = total = code = 0
    for i, b in enumerate(blocks):
        piece = ("" if not i else "\n" if b.item and blocks[i - 1].item else "\n\n") + b.text
        size = len(piece) if piece.isascii() else len(piece.encode("utf-8", "surrogatepass"))
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
    headings = sum(b.heading > 0 for b in blocks)
    return Extracted("".join(text), spans, title, lang, share, w.formulas, w.tables, headings, code, method)
