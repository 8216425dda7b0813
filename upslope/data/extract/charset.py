"""Which characters the bytes of a page stand for.

Order: byte order mark, UTF-16 by its zero bytes, the server's header, the page's own <meta>, UTF-8; a candidate counts only if the bytes
are valid in it. Valid UTF-8 beyond ASCII is UTF-8 whatever the page says: text in another encoding is nearly never valid UTF-8, while
UTF-8 is valid in most of the old ones. Text that was encoded twice is left as it is.
Labels mean what browsers take them to mean (iso-8859-1 is windows-1252, euc-kr is cp949 …), since pages are written for browsers.
Source: WHATWG Encoding Standard, section 4.2 (labels); HTML Standard, section 13.2.3 (determining the encoding).
"""

from __future__ import annotations

import codecs
import re
from typing import NamedTuple

META = re.compile(
    rb"<meta[^>]{0,200}?charset\s*=\s*[\"']?\s*([A-Za-z0-9_.:+-]+)"
    rb"|<\?xml[^>]{0,200}?encoding\s*=\s*[\"']([A-Za-z0-9_.:+-]+)",
    re.I,
)
BOMS = ((codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"))
BROWSER = {
    "iso-8859-1": "cp1252",
    "iso8859-1": "cp1252",
    "iso_8859-1": "cp1252",
    "latin1": "cp1252",
    "latin-1": "cp1252",
    "us-ascii": "cp1252",
    "ascii": "cp1252",
    "windows-1252": "cp1252",
    "iso-8859-9": "cp1254",
    "iso-8859-11": "cp874",
    "tis-620": "cp874",
    "euc-kr": "cp949",
    "ks_c_5601-1987": "cp949",
    "korean": "cp949",
    "ks_c_5601-1989": "cp949",
    "windows-949": "cp949",
    "big5": "big5hkscs",
    "big5-hkscs": "big5hkscs",
    "cn-big5": "big5hkscs",
    "iso-8859-8-i": "iso8859-8",
    "logical": "iso8859-8",
    "windows-874": "cp874",
    "shift_jis": "cp932",
    "shift-jis": "cp932",
    "sjis": "cp932",
    "x-sjis": "cp932",
    "windows-31j": "cp932",
    "gb2312": "gb18030",
    "gbk": "gb18030",
    "x-gbk": "gb18030",
    "x-euc-jp": "euc-jp",
    "x-mac-cyrillic": "mac-cyrillic",
    "unicode": "utf-8",
    "utf8": "utf-8",
    "x-user-defined": "cp1252",
}


NO_PAGES = frozenset(
    {"idna", "punycode", "undefined", "unicode-escape", "unicode_escape", "raw-unicode-escape", "raw_unicode_escape", "utf-7"}
)
NEAR, FAR = 4096, 1 << 17  # bytes: where a <meta> should be, and where it is looked for next
FEW = 4  # characters beyond ASCII: in fewer, a page in another multi-byte encoding may be valid UTF-8 by chance


class Decoded(NamedTuple):
    """text; the Python codec used; how it was told (bom, zeros, header, meta, utf-8, guess); places where bytes had no meaning in it."""

    text: str
    codec: str
    told: str
    bad: int


def codec(label: str) -> str | None:
    """The Python codec for a charset label, or None if there is none."""
    name = label.strip().lower()
    name = BROWSER.get(name, name)
    try:
        found = codecs.lookup(name)
    except (LookupError, ValueError):
        return None
    return found.name if getattr(found, "_is_text_encoding", True) and found.name not in NO_PAGES else None


def decode(body: bytes, header: str = "") -> Decoded:
    """Decodes a page. Never fails: where no candidate fits, windows-1252 (the web's fallback), with unknown bytes replaced and counted."""
    for mark, marked in BOMS:
        if body.startswith(mark):
            return _loose(body[len(mark) :], marked, "bom")
    if wide := _zeros(body[:2048]):
        return _loose(body, wide, "zeros")
    meta = META.search(body[:NEAR]) or META.search(body[NEAR:FAR])
    label = (meta.group(1) or meta.group(2)).decode() if meta else ""
    said = (("header", codec(header) if header else None), ("meta", codec(label) if label else None))
    # a <meta> that could be read is not UTF-16
    named = [(told, name) for told, name in said if name and not (told == "meta" and name.startswith("utf-16"))]
    if not body.isascii():
        try:
            text = body.decode("utf-8")
        except UnicodeDecodeError:
            pass
        else:
            if not named or _single(named[0][1]) or len(text) - len(text.encode("ascii", "ignore")) >= FEW:
                told = next((told for told, name in named if name == "utf-8"), "utf-8")
                return Decoded(text, "utf-8", told, 0)
    for told, name in [*named, ("utf-8", "utf-8")]:
        try:
            return Decoded(body.decode(name), name, told, 0)
        except UnicodeError:
            continue
    # a few torn bytes in a page that says what it is (a cut multi-byte character) must not turn all of it into another alphabet
    for told, name in [*named, ("utf-8", "utf-8")]:
        found = _loose(body, name, told)
        if found.bad * 200 <= len(found.text):
            return found
    return _loose(body, "cp1252", "guess")


def _loose(body: bytes, name: str, told: str) -> Decoded:
    text = body.decode(name, "replace")
    own = body.count("�".encode()) if name == "utf-8" else 0  # the page's own replacement characters
    return Decoded(text, name, told, max(0, text.count("�") - own))


def _zeros(start: bytes) -> str:
    """UTF-16 without a byte order mark: of markup, every other byte is zero."""
    even, odd, half = start[::2].count(0), start[1::2].count(0), len(start) // 2
    if half < 8 or b"<" not in start or max(even, odd) * 4 < half or min(even, odd) * 20 > half:
        return ""
    return "utf-16-le" if odd > even else "utf-16-be"


def _single(name: str) -> bool:
    """Whether a codec has one byte per character."""
    return name.startswith(("cp12", "iso8859", "koi8", "mac", "cp8", "latin"))
