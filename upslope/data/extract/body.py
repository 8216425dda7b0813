"""Which blocks of a page are its content, and which are what surrounds it.

In: the blocks of a page in document order and its boxes (block elements), each the interval of the blocks inside it. A block's weight is
its text that is no link, if it reads like prose; a box weighs what its blocks weigh. Boxes that say they are surroundings are junk, unless
they carry or hold most of the weight: layout names lie. The content is a box that calls itself an article's body, if it carries a fair
share, else the innermost box with nearly all the weight that is not junk. In it, boxes that are mostly links go, and so do headings over
nothing. Only how a few short lines begin (`CALLS`) depends on the language of the page. On pages of documentation generators, whose names
can be trusted and whose lists of links are content, all of the main element stays but what is known to surround it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple

from upslope.data.extract.landmarks import AROUND, ARTICLE, BODY, CALLS, COMMENT, DOCS, HEADER, JUNK, LOOSE, MAIN, MANUAL, NOTICE, WORDY
from upslope.data.shards import CODE, PROSE

END = re.compile(r"[.!?…:;](?=[\s\"'”»)\]]|$)|[。！？；：，、؟۔।॥,،]")
DENSE = re.compile(r"[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uac00-\ud7af]")
WORDS = re.compile(r"\w+")
DATE = re.compile(r"\b(?:19|20)\d\d\b|\b\d{1,2}[:.]\d\d\b")
FEW = 200  # characters: less is not trusted to be a page's content
LINE, SENTENCE = 25, 80  # weight: below the first a block says nothing, from the second on it need not end a sentence
NEARLY, FAIR = 0.85, 0.3  # shares of a page's weight
UNTOLD = frozenset({"li", "ul", "ol", "blockquote"})  # never the box of the content by weight alone
PUBLISHED = ("og:title", "og:type", "og:image", "ld+json", "twitter:card", "wp-content", "wp-includes", "hentry", "articleBody")
GENERATED = ('class="headerlink"', 'class="hash-link"', "class='headerlink'")
GENERATOR = re.compile(r"<meta[^>]{0,80}generator[^>]{0,80}", re.I)
DOCUMENTING = re.compile(r"docutils|docbook|doxygen|mkdocs|sphinx|docusaurus|rustdoc|javadoc|asciidoctor|hevea|texinfo|latex2html", re.I)
NEWS, UNKNOWN, DOCUMENT = 0, 1, 2


@dataclass(slots=True)
class Block:
    """A piece of Markdown that ends up between blank lines. linked: characters of its text that are links; heading: its level or 0."""

    text: str
    kind: int = PROSE
    item: bool = False
    heading: int = 0
    linked: int = 0


@dataclass(slots=True)
class Box:
    """A block element: its tag, hints (`landmarks`), the blocks inside it (from start to end) and the index of the box around it."""

    tag: str
    hint: int
    start: int
    end: int
    parent: int


class Chosen(NamedTuple):
    """Indices of the blocks to keep, in order, and what chose them (`Extracted.method`)."""

    keep: list[int]
    method: str


def origin(html: str) -> int:
    """What made a page: a publishing system or somebody who wants it shared (news, blogs, shops), a documentation generator, or unknown."""
    generator = GENERATOR.search(html, 0, 20_000)
    if any(sign in html for sign in GENERATED) or (generator and DOCUMENTING.search(generator.group())):
        return DOCUMENT
    return NEWS if any(sign in html for sign in PUBLISHED) else UNKNOWN


def weight(block: Block) -> float:
    """How much a block speaks for being content: characters that are no link, if there are enough of them or they end a sentence."""
    n = len(block.text) - block.linked
    if block.heading or n <= 0:
        return 0.0
    if block.kind != PROSE:
        return float(n) if block.linked < 0.5 * n else 0.0
    if not block.text.isascii():
        n += 2 * len(DENSE.findall(block.text))
    if n < 2 * block.linked or n < LINE:
        return 0.0
    ends = END.search(block.text) is not None
    if n < SENTENCE and not ends:
        return 0.0
    return float(n) if ends else 0.3 * n


def decide(blocks: list[Block], boxes: list[Box], title: str, made: int, keep_title: bool) -> Chosen:
    """The blocks that are the content of a page. boxes: in document order; title: of the page; made: its `origin`."""
    if not blocks:
        return Chosen([], "all")
    documentation = made == DOCUMENT or any(b.hint & MANUAL for b in boxes) or (made == UNKNOWN and any(b.kind == CODE for b in blocks))
    page = _Page(blocks, boxes, title, documentation)
    if documentation:
        name, method, keep = page.top, "landmark", page.manual()
        if not keep:
            page = _Page(blocks, boxes, title, False)
    if not documentation or not keep:
        keep, name, method = page.article()
    if keep_title:
        keep = sorted({name, *keep}) if name >= 0 and method != "landmark" else keep
    else:
        keep = [i for i in keep if i != name]
    return Chosen(keep, method)


class _Page:
    def __init__(self, blocks: list[Block], boxes: list[Box], title: str, documentation: bool) -> None:
        self.blocks, self.boxes, self.documentation = blocks, boxes, documentation
        self.title = _words(title)
        # an index of documentation is made of links, and content
        self.weights = [float(len(b.text)) for b in blocks] if documentation else [weight(b) for b in blocks]
        self.sums = [0.0, *accumulate(self.weights)]
        self.firsts = [0, *accumulate(b.heading == 1 for b in blocks)]
        self.top = self.heading()
        self.told = False
        says = MAIN | DOCS if documentation else BODY | ARTICLE
        tags = () if documentation else ("article", "main")
        self.hosts = [b for b in boxes if (b.hint & says or b.tag in tags) and self.hosting(b)]

    def heading(self) -> int:
        """The first heading of level 1 that the page's title repeats, or else the first one of level 1; -1 without one."""
        found = [i for i, b in enumerate(self.blocks) if b.heading == 1]
        said = (i for i in found if (text := _words(self.blocks[i].text)) and text in self.title)
        return next(said, found[0] if found else -1)

    def carried(self, box: Box) -> float:
        return self.sums[box.end] - self.sums[box.start]

    def hosting(self, box: Box) -> bool:
        """Whether a box that says it is content carries a fair share of the page's weight."""
        if self.documentation:
            return self.carried(box) >= FAIR * self.sums[-1]
        fair = self.carried(box) > FAIR * self.sums[-1] or (box.hint & ARTICLE and self.carried(box) > FEW)
        return bool(fair and not box.hint & COMMENT)

    def chars(self, keep: list[int]) -> int:
        """Characters that are no link."""
        return sum(max(0, len(self.blocks[i].text) - self.blocks[i].linked) for i in keep)

    # what surrounds

    def junk(self, surroundings: int, words: bool = True) -> list[bool]:
        """Blocks inside boxes that say they are surroundings, if they may be believed. words: also if only a word of a name says it."""
        junk = [False] * len(self.blocks)
        until = 0
        for box in self.boxes:
            if box.start < until or box.end <= box.start or not box.hint & surroundings or (box.hint & WORDY and not words):
                continue
            if self.title_header(box):
                for i in range(box.start, box.end):
                    junk[i] = junk[i] or (not self.blocks[i].heading and self.weights[i] < 60)
            elif self.believed(box):
                junk[box.start : box.end] = [True] * (box.end - box.start)
                until = box.end
        return junk

    def title_header(self, box: Box) -> bool:
        """Whether a box is a header that holds the page's title, or stands in the content: its short lines go, not all of it."""
        if not box.hint & HEADER or box.hint & (JUNK | COMMENT | NOTICE):
            return False
        if self.firsts[box.end] > self.firsts[box.start]:
            return True
        return not self.documentation and any(h.start <= box.start and box.end <= h.end for h in self.hosts)

    def believed(self, box: Box) -> bool:
        """Whether a box that says it is surroundings is: not if it carries or holds most of the content."""
        hint, carried, total = box.hint, self.carried(box), self.sums[-1]
        titled = box.start <= self.top < box.end
        if any(box.start <= h.start and h.end <= box.end for h in self.hosts) or (box.tag == "blockquote" and not hint & COMMENT):
            return False
        if self.documentation:  # generators mean their names, but make longer ones of headings
            return not hint & WORDY and not titled
        if hint & NOTICE:
            return not titled and self.blocks[box.start].heading != 1
        if hint & COMMENT and self.top < box.start and self.sums[box.start] - self.sums[max(0, self.top)] >= max(300.0, 0.1 * carried):
            return True
        if hint & (JUNK | COMMENT | HEADER):
            return carried <= 0.65 * total and not (hint & COMMENT and titled)
        return carried <= 0.2 * total and (bool(hint & LOOSE) or carried <= 2 * FEW)

    def teasers(self, junk: list[bool]) -> None:
        """Marks runs of linked headings with a few lines each: other pages' openings, if there is more on the page than them."""
        found: list[int] = []
        run: list[int] = []
        heads = lines = 0
        for i in [*(i for i, j in enumerate(junk) if not j), -1]:
            b = self.blocks[i] if i >= 0 else None
            if b is not None and b.heading > 1 and b.linked >= 0.8 * (len(b.text) - b.heading - 1):
                run.append(i)
                heads, lines = heads + 1, 0
            elif b is not None and run and not b.heading and lines < 4 and len(b.text) < 700:
                run.append(i)
                lines += 1
            else:
                found += run if heads >= 3 else []
                run, heads, lines = [], 0, 0
        rest = sum(w for w, j in zip(self.weights, junk) if not j) - sum(self.weights[i] for i in found)
        if rest >= max(250.0, 0.25 * sum(self.weights[i] for i in found)):
            for i in found:
                junk[i] = True

    # what is content

    def manual(self) -> list[int]:
        """The blocks of a page of documentation: all of the outermost box that says it is the main part, but what surrounds it."""
        junk = self.junk(JUNK | COMMENT | HEADER | NOTICE)
        start, end = (self.hosts[0].start, self.hosts[0].end) if self.hosts else (0, len(self.blocks))
        return self.ends([i for i in range(start, end) if not junk[i]])

    def article(self) -> tuple[list[int], int, str]:
        """(the content of any other page, the heading that names the page or -1, the method)."""
        junk = self.junk(AROUND)
        self.teasers(junk)
        outside = [i for i, j in enumerate(junk) if not j]
        keep, name = self.content(junk)
        method = "content"
        if self.chars(keep) < (50 if self.told else max(FEW, 0.2 * self.chars(outside))):
            sure = self.junk(JUNK | HEADER | NOTICE, words=False)
            more, other = self.content(sure)
            more = more if self.chars(more) >= FEW else self.ends(outside)
            if self.chars(more) > 2 * self.chars(keep):
                keep, name, method = more, other, "recall"
            if not keep:
                keep, name, method = self.ends([i for i, j in enumerate(sure) if not j]), -1, "all"
        return keep, name, method

    def content(self, junk: list[bool]) -> tuple[list[int], int]:
        """(the blocks of the box that holds the content, the heading that names the page or -1)."""
        weights = [0.0 if j else w for j, w in zip(junk, self.weights)]
        start, end = self.body([0.0, *accumulate(weights)])
        name = self.name(start, end, weights)
        # the standfirst often stands with the title, outside of the body
        lede = [i for i in range(name + 1, start) if weights[i] >= 60 and not self.blocks[i].linked] if name >= 0 else []
        return lede[:3] + self.clean([i for i in range(start, end) if not junk[i] and i != name], start, end), name

    def body(self, sums: list[float]) -> tuple[int, int]:
        """The interval of the box that the content stands in. sums: of the weights that are not junk, up to each block."""
        for hint, share in ((ARTICLE, 0.02), (BODY, 0.4)):
            told = [b for b in self.boxes if b.hint & hint and not b.hint & COMMENT and sums[b.end] - sums[b.start] >= share * sums[-1] > 0]
            if told:
                self.told = True
                most = max(told, key=lambda b: sums[b.end] - sums[b.start])
                least = NEARLY * (sums[most.end] - sums[most.start])
                inner = [b for b in told if most.start <= b.start and b.end <= most.end and sums[b.end] - sums[b.start] >= least][-1]
                parts = [b for b in told if b.parent == inner.parent]  # parts of one body are siblings
                return min(b.start for b in parts), max(b.end for b in parts)
        self.told = False
        start, end = 0, len(self.blocks)
        for b in self.boxes:
            if b.start >= start and b.end <= end and sums[b.end] - sums[b.start] >= NEARLY * sums[-1] > 0 and b.tag not in UNTOLD:
                start, end = b.start, b.end
        return start, end

    def name(self, start: int, end: int, weights: list[float]) -> int:
        """The heading that names the page: the last one before the first prose that is of level 1 or repeats the title; -1 without one."""
        first = next((i for i in range(start, end) if weights[i] > 0), end)
        best = -1
        for i in range(min(end, first + 1)):
            if self.blocks[i].heading:
                text = _words(self.blocks[i].text)
                if self.blocks[i].heading == 1 or (text and text in self.title and len(text) * 2 >= len(self.title)):
                    best = i
        return best

    def clean(self, keep: list[int], start: int, end: int) -> list[int]:
        """Without boxes and paragraphs that are mostly links, calls, dates above the text, and headings over nothing."""
        blocks = self.blocks
        chars = [0, *accumulate(len(b.text) for b in blocks)]
        linked = [0, *accumulate(min(b.linked, len(b.text)) for b in blocks)]
        gone = {i for i in keep if blocks[i].kind == PROSE and not blocks[i].item and 0 < blocks[i].linked >= 0.7 * len(blocks[i].text)}
        until = start
        for box in self.boxes:
            if box.start < until or box.end > end or (box.start, box.end) == (start, end) or box.tag == "li":
                continue
            size = chars[box.end] - chars[box.start]
            if linked[box.end] - linked[box.start] > 0.5 * size and self.carried(box) < 0.2 * size:
                gone.update(range(box.start, box.end))
                until = box.end
        left = [i for i in keep if i not in gone]
        if sum(len(blocks[i].text) for i in left) < 0.25 * sum(len(blocks[i].text) for i in keep):
            left = keep  # a page whose content is its links
        first = next((i for i in left if self.weights[i] >= SENTENCE), 0)
        return self.bare([i for i in left if not self.call(blocks[i]) and (i >= first or not self.dated(blocks[i]))])

    def call(self, block: Block) -> bool:
        """Whether a line calls the reader away."""
        return block.kind == PROSE and len(block.text) < 160 and CALLS.match(block.text) is not None

    def dated(self, block: Block) -> bool:
        """Whether a line is a date, or has one: a byline."""
        return not block.heading and len(block.text) <= 80 and DATE.search(block.text) is not None

    def bare(self, keep: list[int]) -> list[int]:
        """Without headings that have nothing under them."""
        out: list[int] = []
        for i in reversed(keep):
            level = self.blocks[i].heading
            if not level or (out and not 0 < self.blocks[out[-1]].heading <= level):
                out.append(i)
        return out[::-1]

    def ends(self, keep: list[int]) -> list[int]:
        """Without the runs of links at both ends and the headings at the end."""
        blocks = self.blocks
        plain = [blocks[i].kind != PROSE or blocks[i].linked < 0.8 * len(blocks[i].text) for i in keep]
        content = [j for j, i in enumerate(keep) if plain[j] and not blocks[i].heading]
        if content:
            first, last = content[0], content[-1]
            keep = [i for j, i in enumerate(keep) if first <= j <= last or (blocks[i].heading and plain[j])]
            while keep and blocks[keep[-1]].heading:
                keep = keep[:-1]
        return keep


def _words(text: str) -> str:
    return " ".join(WORDS.findall(text.lower()))
