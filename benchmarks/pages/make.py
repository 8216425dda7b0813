"""Builds the gold pages: html/ID.html and ground-truth.json from bodies/LANG.txt, chrome.toml and layouts/*.html.

    python benchmarks/pages/make.py

A body file holds pages, each begun by `=== id | layout | title` and `key: value` lines, then blocks parted by blank lines: paragraphs,
`## ` and `### ` headings, `- ` and `1. ` lists, `> ` quotes, `| a | b |` tables, ``` code, `! ` captions, and in braces what does not
belong to the article: {also} {ad} {news} {more} {pull: words} {time 20:05} {post NAME}. `*x*`, `**x**` and `` `x` `` are inline mark-up,
`^1` is a footnote mark. The gold text comes from the blocks alone, never from HTML; README.md says what belongs to it.
"""

from __future__ import annotations

import hashlib
import json
import re
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup, escape

HERE = Path(__file__).resolve().parent
VARIANTS = {"news": ("news", "news-div", "news-nested"), "blog": ("blog", "blog-plain")}
SITES = ("The Ledger", "Gazette", "Tagwerk", "Almanac", "Courier", "Meridian", "Harbour Post", "Lantern", "Kompass", "Orbita")
NOISE = re.compile(r"\{(also|ad|news|more|pull|time|post)(?:[: ]\s*(.*))?\}")
KEYS = ("author", "date", "url", "charset")
LIGHT = ("table2002", "malformed", "gov", "tables", "short", "blog-plain")  # hand-written pages without build tools
ICON = '<symbol id="i{0}" viewBox="0 0 24 24"><path d="M{1} {2}h{3}v{4}H{1}z"/><path d="M{2} {1}l{4}-{3} {3} {4}z"/></symbol>'


def number(*parts: str) -> int:
    """A hash, so that every choice is a function of the page alone."""
    return int.from_bytes(hashlib.blake2b("|".join(parts).encode(), digest_size=8).digest(), "big")


def blocks(body: str) -> Iterator[str]:
    """Runs of lines without a blank line; a fenced block keeps its blank lines."""
    held: list[str] = []
    fenced = False
    for line in [*body.splitlines(), ""]:
        fenced ^= line.startswith("```")
        if line.strip() or fenced:
            held.append(line)
        elif held:
            yield "\n".join(held)
            held = []


def pages(text: str) -> Iterator[tuple[dict[str, str], list[str]]]:
    """(head, blocks) of each page in a body file."""
    for part in re.split(r"^=== ", text, flags=re.M)[1:]:
        head, _, body = part.partition("\n\n")
        first, *lines = head.splitlines()
        fields = dict.fromkeys(KEYS, "") | dict(zip(("id", "layout", "title"), (x.strip() for x in first.split("|"))))
        yield fields | dict(line.split(": ", 1) for line in lines), list(blocks(body))


def plain(text: str) -> str:
    """Text without inline mark-up and footnote marks."""
    text = re.sub(r"\^\d+", "", text)
    return re.sub(r"`([^`]+)`|\*\*([^*]+)\*\*|(?<![\w*])\*([^* ][^*]*)\*", lambda m: m[1] or m[2] or m[3], text)


def inline(text: str) -> Markup:
    """HTML of a text with inline mark-up."""
    html = str(escape(text))
    html = re.sub(r"\^(\d+)", r'<sup id="cite_ref-\1" class="reference"><a href="#cite_note-\1">[\1]</a></sup>', html)
    html = re.sub(r"`([^`]+)`", r"<code>\1</code>", html)
    html = re.sub(r"\*\*([^*]+)\*\*", r"<strong>\1</strong>", html)
    return Markup(re.sub(r"(?<![\w*])\*([^* ][^*]*)\*", r"<em>\1</em>", html))


def parse(block: str) -> tuple[str, Any]:
    """(kind, content) of a block; content is a text, a list of texts, rows, or (code, language)."""
    lines = block.splitlines()
    if noise := NOISE.fullmatch(block):
        return noise[1], noise[2] or ""
    if block.startswith("```"):
        return "code", ("\n".join(lines[1:-1]), lines[0][3:])
    for mark, kind in (("### ", "h3"), ("## ", "h2"), ("> ", "quote"), ("! ", "fig")):
        if block.startswith(mark):
            return kind, block.removeprefix(mark)
    if block.startswith("- "):
        return "ul", [line.removeprefix("- ") for line in lines]
    if re.match(r"\d+\. ", block):
        return "ol", [line.split(". ", 1)[1] for line in lines]
    if block.startswith("| "):
        return "table", [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in lines]
    return "p", block


def gold(parsed: list[tuple[str, Any]]) -> str:
    """The article: blocks parted by blank lines, list items and table rows by line breaks, cells by tabs."""
    out = []
    for kind, content in parsed:
        if kind in ("ul", "ol"):
            out.append("\n".join(plain(x) for x in content))
        elif kind == "table":
            out.append("\n".join("\t".join(plain(x) for x in row) for row in content))
        elif kind == "code":
            out.append(content[0])
        elif kind in ("p", "h2", "h3", "quote", "fig"):
            out.append(plain(content))
    return "\n\n".join(out)


class Shell:
    """A layout filled with one page's surroundings; the macros of the layout's file go before those of _blocks.html."""

    def __init__(self, env: Environment, layout: str, fields: dict[str, str], lang: str, chrome: dict[str, Any], parsed: list[Any]) -> None:
        key = fields["id"]
        shift = number(key, "related") % len(chrome["related"])
        chrome = chrome | {"related": chrome["related"][shift:] + chrome["related"][:shift]}
        self.heads = [(f"s{i}", plain(x)) for i, (kind, x) in enumerate(parsed) if kind in ("h2", "h3")]
        host = f"www.{SITES[number(key) % len(SITES)].lower().replace(' ', '-')}.example"
        self.url = fields["url"] or f"https://{host}/{lang}/{key}"
        context = {
            "c": chrome, "lang": lang, "title": fields["title"], "author": fields["author"], "date": fields["date"], "url": self.url,
            "charset": fields["charset"] or "utf-8", "site": SITES[number(key) % len(SITES)], "heads": self.heads,
            "h": lambda name: f"c{number(key, str(name)) % 36**4:x}", "first_row": lambda rows, row: row is rows[0],
        }  # fmt: skip
        self.own = env.get_template(f"{layout}.html").make_module(context)
        self.common = env.get_template("_blocks.html").make_module(context)

    def macro(self, name: str) -> Callable[..., Markup]:
        """The layout's macro, else the common one."""
        found: Callable[..., Markup] = getattr(self.own, name, None) or getattr(self.common, name)
        return found

    def html(self, parsed: list[tuple[str, Any]]) -> str:
        """The whole page."""
        out, seen = [], dict.fromkeys(("also", "ad", "news", "more", "time", "post"), 0)
        for i, (kind, content) in enumerate(parsed):
            macro = self.macro(kind)
            if kind in ("time", "post"):
                out.append(macro(content, seen[kind]))
            elif kind in seen:
                out.append(macro(seen[kind]))
            elif kind in ("ul", "ol"):
                out.append(macro([inline(x) for x in content]))
            elif kind == "table":
                out.append(macro([[inline(x) for x in row] for row in content]))
            elif kind == "code":
                out.append(macro(*content))
            elif kind in ("h2", "h3"):
                out.append(macro(inline(content), f"s{i}"))
            else:
                out.append(macro(inline(content)))
            if kind in seen:
                seen[kind] += 1
        return str(self.macro("page")(Markup("").join(out))).strip() + "\n"


def weight(html: str, key: str, parsed: list[tuple[str, Any]]) -> str:
    """The page with what build tools add: style rules, an icon sprite, and on every third page the article once more as script state."""
    digits = [number(key, str(i)) for i in range(90)]
    rules = (f".c{n % 36**4:x}{{margin:{n % 40}px {n % 7}px;color:#{n % 16**6:06x};font:{n % 9 + 10}px/1.{n % 9} serif}}" for n in digits)
    icons = "".join(ICON.format(n % 97, n % 23, n % 19, n % 17, n % 13) for n in digits[:30])
    state: dict[str, Any] = {"buildId": f"{digits[0]:x}", "experiments": {f"exp_{n % 36**4:x}": n % 3 for n in digits[:60]}}
    if digits[0] % 3 == 0:
        state["article"] = {"paragraphs": [plain(x) for kind, x in parsed if kind == "p"]}
    script = json.dumps(state, ensure_ascii=False).replace("</", "<\\/")
    html = html.replace("</head>", f"<style>{''.join(rules)}</style></head>", 1)
    sprite = f'<svg xmlns="http://www.w3.org/2000/svg" style="display:none"><title>icons</title>{icons}</svg>'
    return html.replace("</body>", f"{sprite}<script>window.__INITIAL_STATE__={script};</script></body>", 1)


def main() -> None:
    """Writes every page and the ground truth."""
    env = Environment(loader=FileSystemLoader(HERE / "layouts"), autoescape=True)
    env.filters["replace_first"] = lambda text, old, new: Markup(str(text).replace(old, str(new), 1))
    chrome = tomllib.loads((HERE / "chrome.toml").read_text(encoding="utf-8"))
    truth: dict[str, dict[str, str]] = {}
    (HERE / "html").mkdir(exist_ok=True)
    used = dict.fromkeys(VARIANTS, 0)
    for file in sorted((HERE / "bodies").glob("*.txt")):
        for fields, parts in pages(file.read_text(encoding="utf-8")):
            layout, lang = fields["layout"], file.stem
            if layout in VARIANTS:
                used[layout] += 1
                layout = VARIANTS[layout][used[layout] % len(VARIANTS[layout])]
            parsed = [parse(x) for x in parts]
            shell = Shell(env, layout, fields, lang, chrome[lang], parsed)
            html = shell.html(parsed)
            if layout not in LIGHT:
                html = weight(html, fields["id"], parsed)
            data = html.encode(fields["charset"] or "utf-8", "xmlcharrefreplace")
            (HERE / "html" / f"{fields['id']}.html").write_bytes(data)
            truth[fields["id"]] = {"articleBody": gold(parsed), "url": shell.url, "layout": layout, "lang": lang}
    text = json.dumps(dict(sorted(truth.items())), ensure_ascii=False, indent=1)
    (HERE / "ground-truth.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
