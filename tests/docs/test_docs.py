"""The marked blocks of the how-tos run, in order, in an empty folder; links in the documents lead somewhere."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[2]
HOWTOS = sorted((ROOT / "docs" / "howto").glob("*.md"))
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md")), *HOWTOS]
FENCE = re.compile(r"^```([^\n]*)\n(.*?)^```$", re.M | re.S)


class Block(NamedTuple):
    """A fenced block. mark: what follows the language on its first line."""

    language: str
    mark: str
    text: str


def blocks(page: Path) -> Iterator[Block]:
    """All fenced blocks of a page."""
    for head, text in FENCE.findall(page.read_text(encoding="utf-8")):
        language, _, mark = head.strip().partition(" ")
        yield Block(language, mark, text)


def executed(page: Path) -> list[Block]:
    """The blocks that are marked to be run or written."""
    return [b for b in blocks(page) if b.mark]


@pytest.mark.parametrize("page", [p for p in HOWTOS if executed(p)], ids=lambda p: p.stem)
def test_marked_blocks_run(page: Path, tmp_path: Path) -> None:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**{k: v for k, v in os.environ.items() if k != "UPSLOPE_STORE"}, "PATH": path, "PYTHONPATH": str(tmp_path)}
    for block in executed(page):
        if block.mark.startswith("file="):
            (tmp_path / block.mark.removeprefix("file=")).write_text(block.text)
            continue
        argv = {"sh": ["sh", "-eu", "-c", block.text], "python": [sys.executable, "-c", block.text]}[block.language]
        done = subprocess.run(argv, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, f"{page.name}:\n{block.text}\n{done.stdout}\n{done.stderr}"


def test_every_guide_but_the_one_of_the_crawl_runs_something() -> None:
    assert [p.stem for p in HOWTOS if not executed(p)] == ["crawl"]


def test_marks_are_known() -> None:
    known = re.compile(r"(run|file=[\w.-]+)$")
    assert [(p.name, b.mark) for p in PAGES for b in executed(p) if not known.match(b.mark)] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page: Path) -> None:
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    targets = [t.split("#")[0] for t in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in t]
    assert [t for t in targets if t and not (page.parent / t).exists()] == []


def test_the_first_screen_of_the_readme_fits() -> None:
    first = (ROOT / "README.md").read_text(encoding="utf-8").split("\n## ")[0].splitlines()
    assert len(first) <= 45
    assert [line for line in first if len(line) > 100] == []
    assert not re.search(r"pip install upslope\b", (ROOT / "README.md").read_text(encoding="utf-8"))


def test_presets_in_the_readme_are_the_presets() -> None:
    from upslope.recipes.load import presets

    line = next(x for x in (ROOT / "README.md").read_text(encoding="utf-8").splitlines() if x.startswith("| `recipes/`"))
    assert set(re.findall(r"`(\w+)`", line)) == set(presets())
