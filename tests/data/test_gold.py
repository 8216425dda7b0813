"""The gold pages hold together, and the extractor finds their articles."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType

import pytest

from upslope.config import UsageError

PAGES = Path(__file__).resolve().parents[2] / "benchmarks" / "pages"
TRUTH: dict[str, dict[str, str]] = json.loads((PAGES / "ground-truth.json").read_text(encoding="utf-8"))
FLOOR = 0.90


def decoded(file: Path) -> str:
    body = file.read_bytes()
    declared = re.search(rb"charset=[\"']?([\w-]+)", body[:4096], re.I)
    assert declared, file.name
    return body.decode(declared[1].decode())


class Visible(HTMLParser):
    """Characters outside scripts and styles, without white space."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.parts: list[str] = []
        self.inside = ""

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if tag in ("script", "style", "title"):
            self.inside = tag

    def handle_endtag(self, tag: str) -> None:
        if tag == self.inside:
            self.inside = ""

    def handle_data(self, data: str) -> None:
        if not self.inside:
            self.parts.append(re.sub(r"\s+", "", data))


def test_the_set_is_wide() -> None:
    assert len(TRUTH) >= 66
    assert {f.stem for f in (PAGES / "html").glob("*.html")} == set(TRUTH)
    assert len({page["layout"] for page in TRUTH.values()}) >= 12
    languages = Counter(page["lang"] for page in TRUTH.values())
    assert len(languages) >= 6
    assert min(languages.values()) >= 3
    assert len({page["url"] for page in TRUTH.values()}) == len(TRUTH)
    assert sum(f.stat().st_size for f in PAGES.rglob("*") if f.is_file()) <= 2_000_000


@pytest.mark.parametrize("name", sorted(TRUTH))
def test_gold_stands_in_the_page_in_order(name: str) -> None:
    reader = Visible()
    reader.feed(decoded(PAGES / "html" / f"{name}.html"))
    seen, at = "".join(reader.parts), 0
    pieces = [re.sub(r"\s+", "", piece) for piece in re.split(r"\n|\t", TRUTH[name]["articleBody"])]
    for piece in filter(None, pieces):
        found = seen.find(piece, at)
        assert found >= 0, piece
        at = found + len(piece)
    assert at < len(seen)
    assert len("".join(pieces)) < 0.9 * len(seen)  # every page has something to leave out
    assert not re.search(r"\{[a-z]|\^\d|\*\*|```", TRUTH[name]["articleBody"])  # no mark-up of the body files


def test_what_make_writes_is_what_is_committed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import runpy
    import shutil

    shutil.copytree(PAGES, tmp_path / "pages", ignore=shutil.ignore_patterns("html", "*.json", "__pycache__"))
    made = runpy.run_path(str(tmp_path / "pages" / "make.py"))
    made["main"]()
    assert json.loads((tmp_path / "pages" / "ground-truth.json").read_text(encoding="utf-8")) == TRUTH
    for name in TRUTH:
        assert (tmp_path / "pages" / "html" / f"{name}.html").read_bytes() == (PAGES / "html" / f"{name}.html").read_bytes(), name


def loaded(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, PAGES.parent / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def gold() -> ModuleType:
    return loaded("gold")


@pytest.fixture(scope="module")
def bench(gold: ModuleType) -> ModuleType:
    return loaded("data_extraction")


def test_the_extractor_finds_the_articles(bench: ModuleType) -> None:
    ours = bench.shingle_scores(["upslope"])["upslope"]
    assert ours["all"] > FLOOR
    pytest.importorskip("resiliparse")
    assert ours["all"] >= bench.shingle_scores(["resiliparse"])["resiliparse"]["all"]


RST = r"""
Title
=====

An example with :math:`a_1 <
b` in it::

    def f(x):
        return x

1. An item that shows::

     $ run

   and goes on.

.. code-block:: c
   :linenos:

   int x;

     int y;

.. testcode::
   :hide:

   secret = 1

>>> 1 + 1
2

.. math::

   x^2

====  ==========
Name  Meaning
====  ==========
a     first
b     second
      line
====  ==========

+---+-----+
| k | v   |
+===+=====+
| 1 | one |
+---+-----+

.. list-table::
   :header-rows: 1

   * - p
     - q
   * - r
     - s

.. csv-table::
   :header: "u", "w"

   1, "two, three"
"""


def test_gold_of_a_source(gold: ModuleType) -> None:
    found = gold.from_rst(RST)
    assert found.code == [["def f(x):", "    return x"], ["$ run"], ["int x;", "", "  int y;"], [">>> 1 + 1", "2"]]
    assert [gold.formula(x) for x in found.tex] == ["x^2", "a_1<b"]
    assert found.tables == [
        ["Name", "Meaning", "a", "first", "b", "second line"],
        ["k", "v", "1", "one"],
        ["p", "q", "r", "s"],
        ["u", "w", "1", "two, three"],
    ]


def test_gold_of_asciidoc(gold: ModuleType) -> None:
    text = "NAME\n----\ngit-x - y\n\nSYNOPSIS\n--------\nz\n\n----\n$ a\n    b\n----\n\n+\n....\nc\n....\n"
    assert gold.from_asciidoc(text).code == [["$ a", "    b"], ["c"]]


def test_only_what_a_page_shows_is_gold(gold: ModuleType) -> None:
    html = "<pre>def f(x):\n    return x</pre><table><tr><td>a</td><td><b>second</b> line</td></tr></table><img class='math' alt='x^2'>"
    seen = gold.visible(gold.from_rst(RST), html)
    assert seen.code == [["def f(x):", "    return x"]]
    assert seen.tex == ["x^2"]
    assert seen.tables == [["a", "second line"]]


def test_score_counts_what_a_text_keeps(gold: ModuleType) -> None:
    wanted = gold.Gold([["def f(x):", "    return x"]], ["x^2", "a_1 < b"], [["a", "b", "c"]])
    whole = "- item\n\n  ```python\n  def f(x):\n      return x\n  ```\n\n$a_1<b$ and\n\n$$\nx^2\n$$\n\n| a | b |\n|---|---|\n| c | d |\n"
    assert gold.score(whole, wanted) == {"code lines": (2, 2), "indentation": (2, 2), "TeX": (2, 2), "cells": (3, 3)}
    flat = whole.replace("      return", "  return").replace("x^2", "x2").replace("| a | b |", "| b | a |")
    assert gold.score(flat, wanted) == {"code lines": (2, 2), "indentation": (1, 2), "TeX": (1, 2), "cells": (2, 3)}
    assert gold.score("def f(x):\n    return x\na b c", wanted)["code lines"] == (0, 2)  # not in a fence
    assert gold.score("def f(x):\n    return x\na b c", wanted, markdown=False) == {
        "code lines": (2, 2), "indentation": (2, 2), "TeX": (0, 2), "cells": (3, 3)
    }  # fmt: skip


def test_a_package_that_cannot_be_had_is_named(gold: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "apt-get").write_text("#!/bin/sh\necho no route to host >&2\nexit 100\n")
    (tmp_path / "apt-get").chmod(0o755)
    with pytest.raises(UsageError, match=r"apt-get download python3.11-doc failed: no route to host"):
        list(gold.gold_pages(tmp_path / "cache"))
    assert gold.main([str(tmp_path / "cache")]) == 2
    (tmp_path / "apt-get").unlink()
    with pytest.raises(UsageError, match="no program apt-get"):
        list(gold.gold_pages(tmp_path / "cache"))


def everything(html: str) -> str:
    """All code, formulas and tables of a page as Markdown, by selectors of the documentation generators."""
    from selectolax.lexbor import LexborHTMLParser

    out = []
    for node in LexborHTMLParser(html).css("pre, img.math, .math, tr"):
        if node.tag == "pre":
            out.append(f"{'`' * 9}\n{node.text().expandtabs(8)}\n{'`' * 9}")
        elif node.tag == "tr":
            cells = (" ".join(c.text().split()).replace("|", "/") for c in node.css("td, th"))
            out.append(f"| {' | '.join(cells)} |")
        elif tex := node.attributes.get("alt") or re.sub(r"^\\[(\[]|\\[)\]]$", "", node.text().strip()):
            out.append(f"$${tex}$$")
    return "\n\n".join(out)


@pytest.mark.slow
def test_gold_of_the_packages_can_be_reached(gold: ModuleType) -> None:
    cache = gold.cache_folder()
    if any(not list(cache.glob(f"{name}_*.deb")) for name in gold.PACKAGES):
        pytest.skip(f"no packages in {cache}")
    pages = list(gold.gold_pages(cache, 40))
    assert {page.package for page in pages} == set(gold.PACKAGES)
    for face, (found, wanted) in gold.tally(pages, everything, markdown=True).items():
        assert wanted > 100
        assert found >= 0.999 * wanted, face
