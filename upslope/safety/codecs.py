"""Reversible disguises of a text: what an attack asks for, and what the detector undoes."""

from __future__ import annotations

import base64
import binascii
import codecs
import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

_LEET = str.maketrans("aeiostbg", "43105789")
_UNLEET = str.maketrans("43105789", "aeiostbg")
_MORSE = {
    "a": ".-",
    "b": "-...",
    "c": "-.-.",
    "d": "-..",
    "e": ".",
    "f": "..-.",
    "g": "--.",
    "h": "....",
    "i": "..",
    "j": ".---",
    "k": "-.-",
    "l": ".-..",
    "m": "--",
    "n": "-.",
    "o": "---",
    "p": ".--.",
    "q": "--.-",
    "r": ".-.",
    "s": "...",
    "t": "-",
    "u": "..-",
    "v": "...-",
    "w": ".--",
    "x": "-..-",
    "y": "-.--",
    "z": "--..",
}
_UNMORSE = {v: k for k, v in _MORSE.items()}
_BASE64 = re.compile(r"[A-Za-z0-9+/]{4,}={0,2}")


class Codec(NamedTuple):
    """encode: text → disguise. decode: any text → what its disguised parts say ("" if there are none). asks: how to request it."""

    encode: Callable[[str], str]
    decode: Callable[[str], str]
    asks: str


def _morse(text: str) -> str:
    """Letters as dots and dashes, one blank between letters, " / " between words; other characters are left out."""
    return " / ".join(" ".join(_MORSE[c] for c in word if c in _MORSE) for word in text.lower().split())


def _unmorse(text: str) -> str:
    """Both readings of a last dot: a sign's, and the sentence's."""
    signs = text.replace("·", ".").replace("−", "-").replace("–", "-").strip()
    return " ".join("".join(_UNMORSE.get(s, " ") for s in re.split(r"[^.\-]+", t) if s) for t in (signs, signs.removesuffix(".")))


def _unbase64(text: str) -> str:
    found = []
    for match in _BASE64.findall(text):
        body = match.rstrip("=")
        try:
            found.append(base64.b64decode(body + "=" * (-len(body) % 4), validate=True).decode("utf-8", "ignore"))
        except (binascii.Error, ValueError):
            continue
    return " ".join(found)


CODECS: Mapping[str, Codec] = {
    "reversed": Codec(lambda t: t[::-1], lambda t: t[::-1], "written backwards"),
    "spaced": Codec(" ".join, lambda t: re.sub(r"(?<=\w)[\W_]+(?=\w\b)", "", t), "one letter at a time"),
    "rot13": Codec(lambda t: codecs.encode(t, "rot13"), lambda t: codecs.decode(t, "rot13"), "in rot13"),
    "base64": Codec(lambda t: base64.b64encode(t.encode()).decode(), _unbase64, "in base64"),
    "leet": Codec(lambda t: t.lower().translate(_LEET), lambda t: t.translate(_UNLEET), "with digits for letters"),
    "morse": Codec(_morse, _unmorse, "in Morse code"),
}
"""All codecs by name; `decode(encode(word))` holds the word again, up to case and blanks."""
