"""Extraction keeps what a page says (code, TeX, tables, lists) and drops what surrounds it."""

from __future__ import annotations

import pytest

from upslope.data.extract.charset import decode
from upslope.data.extract.html import extract
from upslope.data.shards import CODE, MATH, PROSE, TABLE

FILL = "<p>" + "This paragraph is long enough for the page to be taken for one with content in it. " * 4 + "</p>"


def body(html: str) -> str:
    return extract(f"<html><body>{html}</body></html>").text


def test_every_byte_of_a_pre_survives() -> None:
    code = "def f(x):\n\tif x  <  3 and y:\n        return '`' & x\n\n\n    # ünïcode  \n"
    html = code.replace("&", "&amp;").replace("<", "&lt;")
    found = body(f'<div class="highlight-python3 notranslate"><div class="highlight"><pre><span></span>{html}</pre></div></div>')
    assert found == f"```python\n{code[:-1]}\n```"


def test_a_fence_is_longer_than_the_backticks_inside() -> None:
    assert body("<pre>```\nx\n```</pre>") == "````\n```\nx\n```\n````"


def test_breaks_and_line_numbers_in_code() -> None:
    assert body("<pre>a<br>b</pre>") == "```\na\nb\n```"
    table = '<table class="highlighttable"><tr><td class="linenos"><pre>1\n2</pre></td><td class="code"><pre>x\ny</pre></td></tr></table>'
    assert body(table) == "```\nx\ny\n```"


@pytest.mark.parametrize(
    ("html", "tex"),
    [
        (r'<span class="math notranslate">\(a_1 &lt; b\)</span>', r"$a_1 < b$"),
        (r'<div class="math">\[x^2\]</div>', "$$\nx^2\n$$"),
        ('<math><semantics><mi>E</mi><annotation encoding="application/x-tex">E=mc^2</annotation></semantics></math>', "$E=mc^2$"),
        ('<math alttext="\\frac{1}{2}"><mn>0</mn></math>', r"$\frac{1}{2}$"),
        ("<math><mfrac><mi>a</mi><mrow><mi>b</mi><mo>+</mo><mn>1</mn></mrow></mfrac></math>", r"$\frac{a}{b+1}$"),
        (
            "<math display='block'><msup><mi>x</mi><mn>10</mn></msup><mo>≤</mo><msqrt><mi>π</mi></msqrt></math>",
            "$$\nx^{10}\\le \\sqrt{\\pi}\n$$",
        ),
        ("<math><munderover><mo>∑</mo><mi>i</mi><mi>n</mi></munderover></math>", r"$\sum_i^n$"),
        (r'<img class="math" src="a.png" alt="\alpha + 1">', r"$\alpha + 1$"),
        ('<img class="formulaInl" alt="$ k $">', "$k$"),
        ('<script type="math/tex; mode=display">y_0</script>', "$$\ny_0\n$$"),
        (
            '<span class="katex"><span class="katex-mathml"><math><annotation encoding="application/x-tex">z</annotation></math></span>'
            '<span class="katex-html">zz</span></span>',
            "$z$",
        ),
        ("10<sup>9</sup> and x<sub>i+1</sub>, the 2<sup>nd</sup>", "10^9 and x_{i+1}, the 2nd"),
    ],
)
def test_formulas_become_tex(html: str, tex: str) -> None:
    assert body(html) == tex


def test_raw_delimiters_count_as_tex_only_where_the_page_loads_mathjax() -> None:
    assert body(r"<p>use \(x\) to group</p>") == r"use \(x\) to group"
    assert body(r'<script src="MathJax.js"></script><p>let \(x\) be</p>') == "let $x$ be"


def test_images_without_formulas_have_no_text() -> None:
    assert body('<p>see <img src="a.png" alt="a cat"> here</p>') == "see here"


def test_data_tables_become_gfm_and_layout_tables_flow() -> None:
    html = "<table><tr><th>a</th><th colspan=2>b</th></tr><tr><td><code>x|y</code></td><td>2</td><td>3<br>4</td></tr></table>"
    assert body(html) == "| a | b |  |\n| --- | --- | --- |\n| `x\\|y` | 2 | 3 4 |"
    assert body("<table><tr><td><p>left</p></td><td><table><tr><td>in</td></tr></table></td></tr></table>") == "left\n\nin"


def test_lists_headings_quotes_and_inline_code() -> None:
    html = (
        "<h1>T<a class='headerlink' href='#t'>¶</a></h1><ul><li>a<ol start=3><li>b<li>c</ol><li><p>d <tt>e  f</tt></p></ul>"
        "<blockquote>q</blockquote><p>x<br>y"
    )
    assert body(html) == "# T\n\n- a\n  3. b\n  4. c\n- d `e f`\n\n> q\n\nx\ny"


def test_navigation_goes_and_content_stays() -> None:
    html = (
        '<header><a href="/">Site</a></header><div class="related" role="navigation"><a>next</a></div><nav>menu</nav>'
        f'<div class="document"><div class="body"><h1>Title</h1>{FILL}<script>var x;</script><style>p{{}}</style></div></div>'
        '<div class="sphinxsidebar">side</div><footer>foot</footer><div role="contentinfo">copyright</div>'
    )
    text = body(html)
    assert text.startswith("# Title\n\nThis paragraph")
    assert not any(w in text for w in ("Site", "next", "menu", "side", "foot", "copyright", "var"))


def test_a_header_that_holds_the_title_stays() -> None:
    assert body(f"<header><h1>Real title</h1></header>{FILL}").startswith("# Real title")


def test_runs_of_links_at_both_ends_go_but_a_page_of_links_keeps_its_text() -> None:
    links = '<p><a href="a">Previous page</a> | <a href="b">Up</a> | <a href="c">Next page</a></p>'
    assert body(f"{links}<h1>T</h1>{FILL}{links}").startswith("# T")
    assert "Next" not in body(f"{links}<h1>T</h1>{FILL}{links}")
    found = extract(f"<body>{links}</body>")
    assert found.text and found.link_share is not None and found.link_share > 0.7


def test_spans_cover_the_text_by_kind_in_bytes() -> None:
    html = f"<h1>Ä</h1>{FILL}<pre>ö = 1</pre><div class='math'>\\[ü\\]</div><table><tr><th>a<th>b<tr><td>c<td>d</table>{FILL}"
    found = extract(f"<body>{html}</body>")
    data = found.text.encode()
    assert [k for _, _, k in found.spans] == [PROSE, CODE, MATH, TABLE, PROSE]
    assert found.spans[0][0] == 0 and found.spans[-1][1] == len(data) and all(a[1] == b[0] for a, b in zip(found.spans, found.spans[1:]))
    start, end, _ = found.spans[1]
    assert data[start:end].decode().strip() == "```\nö = 1\n```" and found.code_bytes == end - start


@pytest.mark.parametrize("tag", ["div", "b", "ul><li", "table><tr><td", "blockquote", "math><mrow"])
def test_no_page_is_too_deep(tag: str) -> None:
    depth = 100_000 if tag in ("div", "blockquote") else 3_000
    text = body(f"<{tag}>" * depth + "bottom")
    assert "bottom" in text


def test_bad_html_never_raises() -> None:
    bad = ("", "\x00", "<", "<p", "&#xD800;", "<table><td", "<ol start=x><li>a", "</html></body>x", "<a><a><li></ul>y")
    for html in (*bad, "<html hidden><body class=menu>z", "<nav class=menu><nav class=toc><div class=menu>a</div></nav></nav>z"):
        assert isinstance(extract(html).text, str)
    assert body("<p>a\x00b</p>") == "ab"


@pytest.mark.parametrize(
    ("raw", "header", "told", "codec"),
    [
        ("한국어 문서".encode("euc-kr"), "EUC-KR", "header", "cp949"),
        (b'<meta charset="shift_jis">' + "日本語".encode("shift_jis"), "", "meta", "cp932"),
        (
            b'<meta http-equiv="Content-Type" content="text/html; charset=iso-8859-1">' + "naïve “quote”".encode("cp1252"),
            "",
            "meta",
            "cp1252",
        ),
        ("İstanbul".encode("iso-8859-9"), "ISO-8859-9", "header", "cp1254"),
        ("plain ünïcode".encode(), "", "utf-8", "utf-8"),
        (b"\xef\xbb\xbf" + b"bom", "iso-8859-1", "bom", "utf-8"),
        ("Привет".encode(), "us-ascii-nonsense", "utf-8", "utf-8"),
        ("héllo wörld ça".encode("latin-1"), "utf-8", "guess", "cp1252"),
        (b'<meta charset="euc-kr">' + "한국어".encode("euc-kr"), "utf-8", "meta", "cp949"),
    ],
)
def test_the_character_set_is_the_first_in_which_the_bytes_are_valid(raw: bytes, header: str, told: str, codec: str) -> None:
    found = decode(raw, header)
    assert (found.told, found.codec, found.bad) == (told, codec, 0)


def test_a_torn_character_does_not_change_the_alphabet() -> None:
    found = decode(("日本語の文書です。" * 50).encode() + "語".encode()[:2], "utf-8")
    assert found.codec == "utf-8" and found.bad == 1 and found.text.startswith("日本語")
