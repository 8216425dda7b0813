"""The micro recipe for tests: all stages of tiny on every eighth page of the crawl."""

from __future__ import annotations

import zlib
from pathlib import Path

from upslope.machine.stage import Recipe
from upslope.recipes.load import load

ROOT = Path(__file__).parents[1]
CRAWL = ROOT / "upslope" / "assets" / "crawl.warc.gz"
LENIENT = """
name = "lenient"
demo = true
categories = ["capability"]
[[indicators]]
name = "was measured"
category = "capability"
suite = "accuracy"
metric = "correct"
bound = "lower"
threshold = 0.0
min_n = 1
"""


def small_crawl(folder: Path, every: int = 8) -> Path:
    """A WARC of every n-th record, kept whole."""
    path = folder / "small.warc.gz"
    if not path.exists():
        whole, out = CRAWL.read_bytes(), bytearray()
        at = number = 0
        while at < len(whole):
            size = _member(whole, at)
            if number % every == 0:
                out += whole[at : at + size]
            at, number = at + size, number + 1
        path.write_bytes(bytes(out))
    return path


def _member(raw: bytes, at: int) -> int:
    inflate = zlib.decompressobj(31)
    view = memoryview(raw)[at:]
    size = 0
    while not inflate.eof:
        block = view[size : size + 65536]
        inflate.decompress(block)
        size += len(block) - len(inflate.unused_data)
    return size


def micro(folder: Path, *sets: str, seed: int = 0) -> Recipe:
    """The micro recipe reading a small crawl in `folder`, with a gate that lets a model through that learnt nothing."""
    crawl, rules = small_crawl(folder), folder / "lenient.toml"
    rules.write_text(LENIENT)
    fixed = [f'crawl.sources=["{crawl}"]', f'gate.framework="{rules}"', f"seed={seed}"]
    return load(str(ROOT / "tests" / "micro.toml"), [*fixed, *sets]).recipe
