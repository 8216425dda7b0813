"""Pages that are too deep made shallow, before they are parsed."""

from __future__ import annotations

import re

from upslope.data.extract.landmarks import UNCLOSED

NAME = re.compile(r"<(/?)([A-Za-z][A-Za-z0-9]*)")
TAG = re.compile(r"<(/?)([A-Za-z][A-Za-z0-9:-]*)[^<>]*>")
MANY, DEEP, DEEPEST = 8000, 200, 10_000  # tags that may make a page deep; elements of one kind, and of all kinds, in each other


def shallow(html: str) -> str:
    """The page with no element nested in more than `DEEP` of its own kind: the HTML algorithm takes quadratic time in depth."""
    if html.count("<") <= MANY:
        return html
    level = most = 0
    for slash, name in NAME.findall(html):
        if name not in UNCLOSED:
            level += -1 if slash else 1
            most = max(most, level)
            level = max(level, 0)
    if most <= DEEP:
        return html
    depth: dict[str, int] = {}
    total = 0

    def limit(tag: re.Match[str]) -> str:
        nonlocal total
        name = tag.group(2).lower()
        if name in UNCLOSED:
            return tag.group()
        if tag.group(1):
            total = max(0, total - 1)
            depth[name] = max(0, depth.get(name, 0) - 1)
            return "" if depth[name] >= DEEP else tag.group()
        total += 1
        depth[name] = depth.get(name, 0) + 1
        return "" if depth[name] > DEEP or total > DEEPEST else tag.group()

    return TAG.sub(limit, html)
