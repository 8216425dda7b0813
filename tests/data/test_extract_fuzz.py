"""Whatever the bytes: extraction ends, in about linear time, with text whose spans cover it; plain paragraphs come out as they went in."""

from __future__ import annotations

import html as entities
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from upslope.data.extract.charset import decode
from upslope.data.extract.html import extract
from upslope.data.extract.landmarks import words_of
from upslope.data.shards import CODE, MATH, PROSE, TABLE

TAGS = sorted(
    words_of(
        "div p span a b h1 h2 ul ol li table tr td th caption pre code br blockquote article main nav header footer form figure "
        "noscript sup sub math mi img script style button dl dt dd template svg select option section aside "
    )
)
NAMES = (
    "nav",
    "entry-content",
    "comments",
    "highlight",
    "headerlink",
    "math",
    "linenos",
    "cookie-banner",
    "byline",
    "content",
    "blob-code",
    "sect1",
)
ATTRIBUTES = (
    "",
    " hidden",
    " style='display:none'",
    " colspan=3 rowspan=99999999999",
    " start=-1",
    " start=7",
    " role=main",
    " role=navigation",
    " itemprop=articleBody",
    " aria-hidden=true",
    " data-lang=c",
    " alt='$x$'",
    *(f" class='{name}'" for name in NAMES),
    *(f" id='{name}'" for name in NAMES),
)
WORDS = (
    "one",
    "two three, four.",
    "x|y",
    "`",
    "$a$",
    "\\(b\\)",
    "ö",
    "語",
    "&#xD800;",
    "&lt;p>",
    "\x00",
    "\n",
    " ",
    "12:30",
    "\u00ad",
    "<!-- c -->",
)
tags = st.builds(
    lambda slash, tag, attributes, end: f"<{slash}{tag}{attributes}{end}",
    st.sampled_from(["", "", "/"]),
    st.sampled_from(TAGS),
    st.sampled_from(ATTRIBUTES),
    st.sampled_from([">", ">", ">", "/>", ""]),
)
soup = st.lists(tags | st.sampled_from(WORDS), max_size=60).map("".join)


def whole(html: str) -> None:
    """Spans cover the text, byte by byte, in order, in turns of kind; the counts are those of the text."""
    for title in (True, False):
        found = extract(html, title=title)
        data = found.text.encode()
        at = 0
        for start, end, kind in found.spans:
            assert start == at < end and kind in (PROSE, CODE, MATH, TABLE)
            data[start:end].decode()
            at = end
        assert at == len(data)
        assert all(a[2] != b[2] for a, b in zip(found.spans, found.spans[1:]))
        assert found.code_bytes == sum(e - s for s, e, k in found.spans if k == CODE)
        assert found.link_share is None if not found.text else 0 <= (found.link_share or 0) <= 1
        assert found.method in ("", "landmark", "content", "recall", "all")


@settings(max_examples=100, deadline=None)
@given(soup)
def test_tag_soup(html: str) -> None:
    whole(html)


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=200), st.text(max_size=40))
def test_any_characters(text: str, head: str) -> None:
    whole(f"<title>{head}</title><script src=MathJax.js></script><h1>{head}</h1>{text}")


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.text(st.sampled_from("abcdefg ,.!éжق語"), min_size=30, max_size=90).map(lambda s: " ".join(s.split())), min_size=1, max_size=8
    )
)
def test_plain_paragraphs_come_out_as_they_went_in_and_again(lines: list[str]) -> None:
    texts = [f"{line}, and so on and so forth." for line in lines]

    def page(texts: list[str]) -> str:
        return "<body>" + "".join(f"<p>{entities.escape(t)}</p>" for t in texts) + "</body>"

    once = extract(page(texts)).text
    assert once == "\n\n".join(texts)
    assert extract(page(once.split("\n\n"))).text == once


@settings(max_examples=100, deadline=None)
@given(
    st.binary(max_size=300),
    st.sampled_from(["", "utf-8", "utf-16", "gb2312", "shift_jis", "undefined", "idna", "x\x00", "iso-2022-jp", "hz"]),
)
def test_any_bytes_in_any_character_set(body: bytes, header: str) -> None:
    for raw in (body, b"<meta charset=" + header.encode() + b">" + body):
        found = decode(raw, header)
        assert isinstance(found.text, str) and found.bad >= 0
    if 0 not in body:
        assert decode(body.decode("latin-1").encode("utf-8"), header).bad == 0


N = 20_000
HEAVY = {
    "deep divs": "<div>" * N,
    "deep lists": "<ul><li>" * N,
    "deep tables": "<table><tr><td>" * N,
    "deep headers": "<header class=header>" * N,
    "deep names": "".join(f"<x{i}>" for i in range(N)),
    "deep spans in pre": "<pre>" + "<span class=lineno>" * N,
    "deep code": "<code>" * N,
    "deep math": "<math>" + "<mrow>" * N,
    "many paragraphs": "<p>x" * N,
    "many junk boxes": "<div class='nav'><a>x</a></div>" * N,
    "many articles": "<article class='article-body'>some text, it is.</article>" * N,
    "many headings": "<h1>x</h1>" * N,
    "many teasers": "<h2><a>x y</a></h2><p>z.</p>" * N,
    "a long name": "<div class='" + "aB-" * N * 10 + "'>",
    "a long style": "<div style='" + "display" * N * 10 + "'>",
    "a wide table": "<table><tr>" + "<td>x" * N + "<tr><td>y</table>",
    "a ragged table": "<table><tr>" + "<td>x" * 1000 + "<tr><td>y" * N + "</table>",
    "spans over spans": "<table>" + "<tr><td colspan=1000 rowspan=65534>x" * 500 + "</table>",
    "lines in pre": "<pre><ol>" + "<li>x" * N,
    "zeros": "\0" * N * 10 + "<p>",
    "less than": "<" * N * 10,
    "unclosed": "<div class='" * N,
    "misnested": "<b><p>" * N,
    "noscript": "<noscript><div>" * N,
}


@pytest.mark.parametrize("case", HEAVY)
def test_heavy_pages_take_about_linear_time(case: str) -> None:
    began = time.process_time()
    found = extract(HEAVY[case] + "bottom")
    assert time.process_time() - began < 2
    assert isinstance(found.text, str)


@pytest.mark.slow
@pytest.mark.parametrize("tag", ["<div>", "<ul><li>", "<table><tr><td>", "<b><p>", "<span class=x>", "<p>x", "<div class=nav>x</div>"])
def test_a_million_elements(tag: str) -> None:
    began = time.process_time()
    extract(tag * 1_000_000 + "bottom")
    assert time.process_time() - began < 20
