"""TeX as text: pieces put side by side, grouped only where TeX needs it, and characters turned into commands."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

from upslope.data.extract.symbols import SYMBOLS

WORD_END = re.compile(r"(?<!\\)(?:\\\\)*\\[A-Za-z]+$")
TOKEN = re.compile(r"\\[A-Za-z]+\*?|\\.|[^\\{}]", re.S)
LEFT_RIGHT = re.compile(r"\\left(?![a-z])|\\right(?![a-z])")
COMMENT = re.compile(r"(?<!\\)((?:\\\\)*)%[^\n]*(?:\n[ \t]*|$)")
LETTERS = (
    ("DOUBLE-STRUCK", "mathbb"),
    ("BOLD SCRIPT", "boldsymbol mathcal"),
    ("SCRIPT", "mathcal"),
    ("BOLD FRAKTUR", "boldsymbol mathfrak"),
    ("FRAKTUR", "mathfrak"),
    ("BLACK-LETTER", "mathfrak"),
    ("SANS-SERIF BOLD", "boldsymbol mathsf"),
    ("SANS-SERIF", "mathsf"),
    ("MONOSPACE", "mathtt"),
    ("BOLD ITALIC", "boldsymbol"),
    ("BOLD", "mathbf"),
    ("ITALIC", ""),
)


def clean(tex: str) -> str:
    """TeX without its delimiters, comments, and what only tells a renderer how big to draw the whole."""
    if "%" in tex:
        tex = COMMENT.sub(r"\1", tex)
    tex = tex.strip()
    for left, right in (("\\(", "\\)"), ("\\[", "\\]"), ("$$", "$$"), ("$", "$")):
        if tex.startswith(left) and tex.endswith(right) and len(tex) >= len(left) + len(right):
            tex = tex[len(left) : -len(right)].strip()
            break
    for style in ("\\displaystyle", "\\textstyle"):
        if tex.startswith("{" + style) and closing(tex, 0) == len(tex) - 1:
            tex = tex[1:-1].strip()
        if tex.startswith(style) and not tex[len(style) : len(style) + 1].isalpha():
            tex = tex[len(style) :].strip()
    return tex + " " if tex.endswith("\\") and not tex.endswith("\\\\") else tex  # a control space lost its space


def closing(tex: str, at: int) -> int:
    """Where the group that opens at `at` ends; -1 if it never does."""
    depth = 0
    while at < len(tex):
        ch = tex[at]
        depth += (ch == "{") - (ch == "}")
        if depth == 0:
            return at
        at += 2 if ch == "\\" else 1
    return -1


def join(pieces: Sequence[str]) -> str:
    """Pieces side by side, with a space where a control word would swallow what follows, and in x^2 3."""
    out: list[str] = []
    word = short = False
    for piece in pieces:
        if not piece:
            continue
        if (piece[0].isalnum() and (word or short)) or (piece[0] == "\\" and word):
            out.append(" ")
        out.append(piece)
        word = WORD_END.search(piece[-40:]) is not None
        short = piece[-1].isalnum() and piece[-2:-1] in ("^", "_")
    return "".join(out)


def group(tex: str) -> str:
    """As a script: braces are left out only for a single character."""
    tex = tex.strip()
    return tex if (len(tex) == 1 and tex.isalnum()) or tex in ("+", "-", "*") else "{" + tex + "}"


def base_of(tex: str) -> str:
    """As what carries scripts: grouped unless it is one number, one symbol, or one command with its arguments."""
    tex = tex.strip()
    if tex.isdecimal() or tex.replace(".", "", 1).isdecimal():
        return tex
    token = TOKEN.match(tex)
    at = token.end() if token else 0
    if at and tex.startswith("\\begin{"):
        return tex if tex.count("\\begin{") == 1 else "{" + tex + "}"
    if at and tex.startswith("\\left") and len(LEFT_RIGHT.findall(tex)) == 2 and re.search(r"\\right(\\[A-Za-z]+|\\?.)$", tex):
        return tex
    if at > 1:
        while at < len(tex) and tex[at] in "{[":
            end = closing(tex, at) if tex[at] == "{" else tex.find("]", at)
            if end < 0:
                break
            at = end + 1
    return tex if at and at == len(tex) else "{" + tex + "}"


def attach(base: str, sub: str, sup: str) -> str:
    out = base_of(base)
    if sub.strip():
        out += "_" + group(sub)
    primes = sup.strip()
    primes = primes.removeprefix("{}") if re.fullmatch("\\{\\}'+", primes) else primes
    if primes and not primes.strip("'"):
        return out + primes
    if primes:
        primes = join([r"\prime" if t == "'" else t for t in re.findall(r"'|[^']+", primes)])
        out += "^" + group(primes)
    return out


def symbols(text: str) -> str:
    """Characters as TeX."""
    out: list[str] = []
    for ch in text:
        if ch == "\u0338":
            out[-1:] = [r"\not" + "".join(out[-1:])]
        elif ch in SYMBOLS:
            out.append(SYMBOLS[ch])
        elif ch > "\u20ff" and (styled := _letter(ch)):
            out.append(styled)
        else:
            out.append(ch)
    return join(out)


def _letter(ch: str) -> str:
    """A mathematical alphanumeric symbol: 𝐱 is \\mathbf{x}, ℝ is \\mathbb{R}."""
    kind, _, code = unicodedata.decomposition(ch).partition(" ")
    if kind != "<font>":
        return ""
    name, plain = unicodedata.name(ch), chr(int(code, 16))
    plain = SYMBOLS.get(plain, plain)
    for words, commands in LETTERS:
        if words in name:
            return style(plain, commands.split())
    return plain


def style(tex: str, commands: Sequence[str]) -> str:
    for command in reversed(commands):
        tex = f"\\{command}{{{tex}}}"
    return tex


def single(tex: str) -> bool:
    while found := re.fullmatch(r"\\[A-Za-z]+\{(.*)\}", tex):
        tex = found.group(1)
    return TOKEN.fullmatch(tex) is not None
