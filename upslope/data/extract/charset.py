"""Which characters the bytes of a page stand for.

Order: byte order mark, the server's header, the page's own <meta>, UTF-8; a candidate counts only if the bytes are valid in it.
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


class Decoded(NamedTuple):
    """text; the Python codec used; how it was told (bom, header, meta, utf-8, guess); bytes that had no meaning in it."""

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
    except LookupError:
        return None
    return found.name if getattr(found, "_is_text_encoding", True) else None


def decode(body: bytes, header: str = "") -> Decoded:
    """Decodes a page. Never fails: where no candidate fits, windows-1252 (the web's fallback), with unknown bytes replaced and counted."""
    for mark, marked in BOMS:
        if body.startswith(mark):
            text = body[len(mark) :].decode(marked, "replace")
            return Decoded(text, marked, "bom", text.count("�"))
    meta = META.search(body[:4096])
    label = (meta.group(1) or meta.group(2)).decode() if meta else ""
    candidates: list[tuple[str, str | None]] = [
        ("header", codec(header) if header else None),
        ("meta", codec(label) if label else None),
        ("utf-8", "utf-8"),
    ]
    for told, name in candidates:
        if name is None or (told == "meta" and name.startswith("utf-16")):  # a <meta> that could be read is not UTF-16
            continue
        try:
            return Decoded(body.decode(name), name, told, 0)
        except UnicodeDecodeError:
            continue
    named = [(told, name) for told, name in candidates[:2] if name is not None]
    # a few torn bytes in a page that says what it is (a cut multi-byte character) must not turn all of it into another alphabet
    for said, named_codec in [*named, ("utf-8", "utf-8")]:
        text = body.decode(named_codec, "replace")
        bad = text.count("�")
        if bad * 200 <= len(text):
            return Decoded(text, named_codec, said, bad)
    text = body.decode("cp1252", "replace")
    return Decoded(text, "cp1252", "guess", text.count("�"))
