"""The main content of pages of all kinds is told from what surrounds it; tables, fences and the score."""

from __future__ import annotations

import gzip
import json
import re
from collections import Counter
from pathlib import Path

import pytest

from upslope.config import UsageError
from upslope.data.extract.charset import decode
from upslope.data.extract.html import extract
from upslope.data.extract.score import extractors, plain, score, score_folder

TEXT = [
    "The council met on Tuesday to discuss the new bridge, which would cost twelve million and take three years to build.",
    "Residents of the old town, many of whom had come to listen, asked for a ferry instead; the mayor promised to think about it.",
    "A decision is expected in spring, after the engineers have measured how far the river bed has moved since the last flood.",
    "Until then the footbridge stays closed, and everybody who works on the other side will have to take the long way round.",
]
OTHER = {
    "zh": "市议会周二开会讨论新桥的建设，预计耗资一千二百万，工期三年。许多居民前来旁听，他们要求改为开通渡轮，市长答应考虑。",
    "ru": "Городской совет собрался во вторник, чтобы обсудить новый мост: он обойдётся в двенадцать миллионов и займёт три года работы.",
    "ar": "اجتمع المجلس يوم الثلاثاء لمناقشة الجسر الجديد، الذي سيكلف اثني عشر مليونا ويستغرق بناؤه ثلاث سنوات كاملة.",
    "de": "Der Rat beriet am Dienstag über die neue Brücke, die zwölf Millionen kosten und in drei Jahren gebaut werden soll.",
}
LINKS = "".join(f'<li><a href="/{i}">Section number {i}</a></li>' for i in range(12))
JUNK = {
    "cookies": '<div id="cookie-banner">We use cookies to improve the site. By going on you agree to our policy on cookies.</div>',
    "navigation": f'<div class="site-menu"><ul>{LINKS}</ul></div>',
    "share": '<div class="share-buttons"><span>Share this</span><span>by mail</span></div>',
    "related": "<div class='relatedPosts'><h3>More stories</h3>"
    + "".join(
        f"<h4><a href='/s{i}'>Another story of some length {i}</a></h4><p>A teaser that says a few words about it.</p>" for i in range(4)
    )
    + "</div>",
    "newsletter": '<section class="newsletter-signup"><p>Sign up for our letter, which comes every Monday morning at six.</p></section>',
    "author": '<div class="author-bio"><p>Jo Writer has been with the paper for ten years and likes rivers.</p></div>',
    "comments": "<div id='comments'>"
    + "".join(
        f"<div class='comment'><p>Reader {i} thinks that all of this is a waste of money, as it was the last time.</p></div>"
        for i in range(9)
    )
    + "</div>",
    "caption": "<figure><img src='a.jpg'><figcaption>The footbridge, seen from the castle. Photo: J. Writer</figcaption></figure>",
    "tags": '<p class="tags">Filed under <a href="/t">Bridges</a></p>',
    "copyright": "<footer><p>Copyright 2024 The Paper. All rights reserved, everywhere and always.</p></footer>",
    "hidden": '<div style="display: none">This is only shown to people who have not paid for the paper.</div>',
    "dates": "<p>12 May 2024, 10:30</p>",
}
HEAD = "<title>New bridge debated - The Paper</title><meta property='og:type' content='article'>"
LAYOUTS = {
    "article": "<main>{top}<article><h1>New bridge debated</h1>{body}</article>{end}</main>",
    "divs": "<div class='page'>{top}<div class='col-8'><h1>New bridge debated</h1>{body}</div><div class='col-4'>{end}</div></div>",
    "microdata": "<div>{top}<h1>New bridge debated</h1><div itemprop='articleBody'>{body}</div>{end}</div>",
    "table": "<table><tr><td>{top}</td><td><h1>New bridge debated</h1>{body}</td><td>{end}</td></tr></table>",
    "form": "<form id='aspnetForm'>{top}<div class='entry-content'><h1>New bridge debated</h1>{body}</div>{end}</form>",
    "lying names": "<div class='has-sidebar' id='modal'>{top}<div class='post-content'><h1>New bridge debated</h1>{body}</div>{end}</div>",
}


def page(layout: str, body: str, top: str = "", end: str = "") -> str:
    return f"<html><head>{HEAD}</head><body>{LAYOUTS[layout].format(top=top, body=body, end=end)}</body></html>"


def paragraphs(texts: list[str]) -> str:
    return "".join(f"<p>{t}</p>" for t in texts)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", JUNK)
def test_what_surrounds_an_article_goes_and_the_article_stays(layout: str, kind: str) -> None:
    junk = JUNK[kind]
    top, end = ("", junk) if kind in ("related", "author", "comments", "tags", "copyright") else (junk, "")
    found = extract(page(layout, paragraphs(TEXT), top, end), title=False)
    assert found.text == "\n\n".join(TEXT)
    assert found.method == "content"


@pytest.mark.parametrize("layout", LAYOUTS)
def test_all_of_it_at_once_around_and_within(layout: str) -> None:
    inner = TEXT[0] + "</p>" + JUNK["share"] + JUNK["caption"] + "<p>" + TEXT[1]
    body = f"<p>{inner}</p><h2>What next</h2><ul><li>{TEXT[2]}</li><li>{TEXT[3]}</li></ul><blockquote>{TEXT[0]}</blockquote>"
    top = JUNK["cookies"] + JUNK["navigation"]
    end = "".join(JUNK[k] for k in ("author", "related", "comments", "newsletter", "copyright"))
    want = [TEXT[0], TEXT[1], "## What next", f"- {TEXT[2]}\n- {TEXT[3]}", f"> {TEXT[0]}"]
    assert extract(page(layout, body, top, end), title=False).text == "\n\n".join(want)


@pytest.mark.parametrize("lang", OTHER)
def test_no_language_is_needed(lang: str) -> None:
    text = OTHER[lang]
    found = extract(page("divs", paragraphs([text] * 4), JUNK["navigation"], JUNK["comments"]), title=False)
    assert found.text == "\n\n".join([text] * 4)


def test_the_heading_that_names_the_page_is_kept_only_on_demand() -> None:
    html = page("article", paragraphs(TEXT))
    assert extract(html).text == "# New bridge debated\n\n" + extract(html, title=False).text
    assert extract(html).title == extract(html, title=False).title == "New bridge debated - The Paper"
    assert extract(html, title=False).text.startswith(TEXT[0])


def test_a_standfirst_beside_the_title_is_part_of_the_article() -> None:
    lede = "The old town wants a ferry, the mayor wants a bridge, and the river moves on."
    html = f"{HEAD}<header><h1>New bridge debated</h1><p>{lede}</p></header><div itemprop='articleBody'>{paragraphs(TEXT)}</div>"
    assert extract(html, title=False).text.startswith(lede)


def test_a_page_whose_content_lies_in_junk_is_read_by_recall() -> None:
    forum = "".join(f"<div class='comment'><p>{t}</p></div>" for t in TEXT)
    found = extract(f"{HEAD}<body><nav><ul>{LINKS}</ul></nav><div id='comments'>{forum}</div></body>")
    assert found.method in ("content", "recall") and all(t in found.text for t in TEXT) and "Section" not in found.text
    assert extract("<nav><a>only</a></nav>").text == ""


def test_documentation_keeps_its_lists_of_links_and_its_short_lines() -> None:
    index = "".join(f'<dt><a href="#f{i}">function_{i}()</a></dt>' for i in range(30))
    body = f'<div class="body" role="main"><h1>Index</h1><p>A</p><dl>{index}</dl><p>Z</p></div>'
    html = f'<title>Index</title><div class="sphinxsidebar">side</div>{body}'
    found = extract(html)
    assert found.method == "landmark" and found.text.count("function_") == 30 and "side" not in found.text
    headline = '<h2>Sharing<a class="headerlink" href="#s">¶</a></h2>'
    html = f'<div class="document"><div class="section" id="related-comments">{headline}<p>x = 1</p></div></div>'
    assert extract(html).text == "## Sharing\n\nx = 1"  # ids are made of headings


def test_soft_hyphens_go_from_prose_and_stay_in_code() -> None:
    assert extract("<p>bal\u00adance</p><pre>a\u00adb</pre>").text == "balance\n\n```\na\u00adb\n```"


# ── tables ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_spans_keep_every_column_in_its_place() -> None:
    html = (
        "<table><caption>Prices</caption><tr><th rowspan=2>a<th colspan=2>b<th>c</tr><tr><td>1<td>2<td>3</tr>"
        "<tr><td>4<td>5<td rowspan=0 colspan=x>6<td>7</tr></table>"
    )
    assert extract(html).text == "Prices\n\n| a | b |  | c |\n| --- | --- | --- | --- |\n|  | 1 | 2 | 3 |\n| 4 | 5 | 6 | 7 |"


def test_the_rows_of_a_table_are_what_a_plain_grid_filling_gives() -> None:
    """Against the table model of HTML done cell by cell: the first free column takes the next cell."""
    rows = [[(1, 2, "a"), (2, 1, "b"), (1, 3, "c")], [(1, 1, "d"), (1, 2, "e")], [(2, 1, "f")], [(4, 1, "g")]]
    taken: dict[tuple[int, int], str] = {}
    for y, row in enumerate(rows):
        x = 0
        for across, down, text in row:
            while (y, x) in taken:
                x += 1
            for i in range(down):
                for j in range(across):
                    taken[y + i, x + j] = text if (i, j) == (0, 0) else ""
    width = max(x for _, x in taken) + 1
    want = [[taken.get((y, x), "") for x in range(width)] for y in range(len(rows))]
    html = "".join("<tr>" + "".join(f"<td colspan={a} rowspan={d}>{t}</td>" for a, d, t in row) + "</tr>" for row in rows)
    lines = extract(f"<table>{html}</table>").text.split("\n")
    assert [[c.strip() for c in line.strip("|").split("|")] for line in [lines[0], *lines[2:]]] == want


def test_layout_tables_flow_and_single_columns_are_no_tables() -> None:
    assert extract("<table role=presentation><tr><td>a<td>b<tr><td>c<td>d</table>").text == "a\n\nb\n\nc\n\nd"
    assert extract("<table><tr><td>a<tr><td>b</table>").text == "a\n\nb"


# ── code ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("html", "want"),
    [
        ('<pre><code class="language-py">x\n</code></pre>', "```python\nx\n```"),
        ('<pre data-lang="SQL">x</pre>', "```sql\nx\n```"),
        ('<pre><span class="lineno">1</span>x\n<span class="lineno">2</span>y</pre>', "```\nx\ny\n```"),
        ('<pre class="prettyprint"><ol class="linenums"><li><span>a  b</span></li><li>c</li></ol></pre>', "```\na  b\nc\n```"),
        (
            '<figure class="highlight rust"><table><tr><td class="gutter"><pre>1\n2</pre></td>'
            '<td class="code"><pre>x<br>y</pre></td></tr></table></figure>',
            "```rust\nx\ny\n```",
        ),
        (
            '<table class="highlight"><tr><td class="blob-num" data-line-number="1"></td><td class="blob-code">if x:</td></tr>'
            '<tr><td class="blob-num" data-line-number="2"></td><td class="blob-code">    y</td></tr></table>',
            "```\nif x:\n    y\n```",
        ),
        ("<pre>\n\n  a\n\n</pre>", "```\n\n  a\n\n```"),
        ("<pre>x<button>Copy</button></pre>", "```\nx\n```"),
        ("<pre> \n </pre>", ""),
    ],
)
def test_code_comes_out_as_it_was_typed(html: str, want: str) -> None:
    assert extract(html).text == want


# ── character sets ────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("raw", "header", "told", "codec", "text"),
    [
        ("naïve café".encode(), "iso-8859-1", "utf-8", "utf-8", "naïve café"),  # a wrong declaration
        ("naïve cafÃ©".encode(), "", "utf-8", "utf-8", "naïve cafÃ©"),  # encoded twice: left alone
        ("日本語の文書".encode(), "shift_jis", "utf-8", "utf-8", "日本語の文書"),
        ("<html><p>Ünïcode".encode("utf-16-le"), "", "zeros", "utf-16-le", "<html><p>Ünïcode"),
        ("<html><p>Ünïcode".encode("utf-16-be"), "utf-8", "zeros", "utf-16-be", "<html><p>Ünïcode"),
        (b" " * 9000 + b"<meta charset=koi8-r>" + "мир".encode("koi8-r"), "", "meta", "koi8-r", None),
        ("中文".encode("big5"), "Big5", "header", "big5hkscs", "中文"),
        ("日本".encode("iso-2022-jp"), "iso-2022-jp", "header", "iso2022_jp", "日本"),
        (b"plain", "undefined", "utf-8", "utf-8", "plain"),
        (b"plain", "a\x00b", "utf-8", "utf-8", "plain"),
        (b"plain", "unicode_escape", "utf-8", "utf-8", "plain"),
    ],
)
def test_character_sets_that_lie(raw: bytes, header: str, told: str, codec: str, text: str | None) -> None:
    found = decode(raw, header)
    assert (found.told, found.codec, found.bad) == (told, codec, 0)
    assert text is None or found.text == text


def test_bad_bytes_are_counted_and_a_pages_own_replacement_characters_are_not() -> None:
    assert decode(("\ufffd" + "語" * 300).encode() + b"\xe8", "utf-8").bad == 1
    assert decode("\ufffd".encode(), "").bad == 0


# ── score ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_score_is_f1_of_multisets_of_shingles() -> None:
    def brute(a: str, b: str) -> float:
        x, y = ([tuple(t[i : i + 4]) for i in range(len(t) - 3)] for t in (a.split(), b.split()))
        both = sum(min(x.count(s), y.count(s)) for s in set(x))
        return 2 * both / (len(x) + len(y))

    a, b = "a b c d e a b c d x y z w", "a b c d e f a b c d y z w v"
    assert score(a, b)[2] == pytest.approx(brute(a, b)) and 0 < brute(a, b) < 1
    precision, recall, f1 = score(a, b)
    assert f1 == pytest.approx(2 * precision * recall / (precision + recall))
    assert score("", "") == (1.0, 1.0, 1.0) and score("", "a") == score("a", "") == (0.0, 0.0, 0.0)
    assert score("a b", "a b")[2] == 1.0 and score("a b", "a b c")[2] == 0.0  # fewer than four tokens: all or nothing
    assert score("日本語文書", "日本語文")[2] == pytest.approx(2 / 3)  # one token a character
    assert score("A-b, C. d!", "a b c d")[2] == 1.0


def test_markdown_is_compared_without_its_markup() -> None:
    markdown = "## Head\n\n- a `b`\n  1. c\n\n> > q\n\n```python\nx = 1\n```\n\n| p | q\\|r |\n| --- | --- |\n| 1 | 2 |\n\n$$\nz\n$$\n\n$y$"
    assert Counter(re.findall(r"\w+", plain(markdown))) == Counter(["Head", *"abcqx1pqr12zy"])


def folder(at: Path, pages: dict[str, tuple[str, str]]) -> Path:
    (at / "html").mkdir()
    for name, (html, _) in pages.items():
        (at / "html" / f"{name}.html.gz").write_bytes(gzip.compress(html.encode()))
    gold = {name: {"articleBody": body, "url": f"https://{name}.example"} for name, (_, body) in pages.items()}
    (at / "ground-truth.json").write_text(json.dumps(gold))
    return at


def test_a_folder_is_scored_page_by_page(tmp_path: Path) -> None:
    pages = {
        layout.replace(" ", "-"): (page(layout, paragraphs(TEXT), JUNK["navigation"], JUNK["comments"]), "\n".join(TEXT))
        for layout in LAYOUTS
    }
    at = folder(tmp_path, {**pages, "bad": ("<p>nothing like it</p>", TEXT[0])})
    found = score_folder(at)
    assert found.pages[0].id == "bad" and found.pages[0].f1 == 0.0 and all(p.f1 == 1.0 for p in found.pages[1:])
    assert found.f1 == pytest.approx(len(pages) / (len(pages) + 1)) and found.interval[0] < found.f1 <= found.interval[1]
    assert found == score_folder(at) and found.to_json()["f1"] == found.f1 and "bad" in found.render()
    assert score_folder(at, lambda html: html).f1 < found.f1
    for peer in ("resiliparse", "trafilatura"):
        pytest.importorskip(peer)
        assert 0.3 < score_folder(at, extractors()[peer]).f1 <= 1.0


@pytest.mark.parametrize(
    ("gold", "message"),
    [
        (None, "no gold file"),
        ("{", "is not JSON"),
        ("[]", "holds no pages"),
        ("{}", "holds no pages"),
        ('{"a": {"url": ""}}', "articleBody"),
        ('{"a": 1}', "articleBody"),
        ('{"a": {"articleBody": ""}}', "no page"),
        ('{"b": {"articleBody": ""}}', "cannot be read"),
    ],
)
def test_bad_folders_are_refused(tmp_path: Path, gold: str | None, message: str) -> None:
    (tmp_path / "html").mkdir()
    (tmp_path / "html" / "b.html.gz").write_bytes(b"no gzip")
    if gold is not None:
        (tmp_path / "ground-truth.json").write_text(gold)
    with pytest.raises(UsageError, match=message) as caught:
        score_folder(tmp_path)
    assert "way out:" in str(caught.value) and len(str(caught.value).splitlines()) <= 6


def test_unknown_extractors_and_missing_peers_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="upslope, resiliparse, trafilatura"):
        extractors()["magic"]
    monkeypatch.setitem(__import__("sys").modules, "trafilatura", None)
    with pytest.raises(UsageError, match="pip install trafilatura"):
        extractors()["trafilatura"]("<p>x</p>")
