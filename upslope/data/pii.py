"""Personal data and secrets in text: a compiled scan for places worth a look, and exact rules for each kind.

    email    local@host with a real top-level domain          phone   international; national where the form or a word before it says so
    ip       public IPv4 and IPv6                              card    known issuer and length, Luhn's checksum
    iban     the country's length, remainder 1 modulo 97       ssn     US: possible area, group and serial
    secret   private keys, JSON web tokens, tokens with a known prefix, passwords in URLs, values of `api_key =` with high entropy

What was made to be shown is no one's data and is left out: hosts and addresses of RFC 2606, 5737, 3849 and 9637, 555-01xx numbers, card
numbers and IBANs that payment manuals print, `git@`, public resolvers. So are version numbers that look like addresses.

Street addresses and names are not looked for: no rule finds them reliably. Addresses written with `(at)`, and those with letters beyond
ASCII, are missed.

Source: RFC 5322, 3986, 7519; ITU E.164; ISO/IEC 7812, ISO 13616; the token formats that the services publish.
"""

from __future__ import annotations

import ipaddress
import math
import re
from collections import Counter
from collections.abc import Collection, Iterator
from typing import NamedTuple

import numba as nb
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from upslope.data.hashing import U8

KINDS = ("secret", "iban", "card", "ssn", "email", "ip", "phone")
"""In order of precedence where two overlap."""

AT, NUMBER, TOKEN, BANK, SIX, KEY = range(6)


class Hit(NamedTuple):
    """Bytes start to end of a text hold something of a kind."""

    start: int
    end: int
    kind: str


def find(text: bytes, kinds: Collection[str] = KINDS) -> list[Hit]:
    """What a UTF-8 text holds of some kinds, by position, without overlaps."""
    data = np.frombuffer(text, np.uint8)
    return _resolve(text, candidates(data, 0, data.size), kinds)


def hits(batch: pa.RecordBatch, kinds: Collection[str], also_code: bool) -> Iterator[list[Hit]]:
    """What each row holds; without also_code, only what does not touch a code span. Needs the columns text and spans."""
    from upslope.data.prose import texts_of
    from upslope.data.shards import CODE

    data, offsets, _ = texts_of(batch)
    for row, (start, end) in enumerate(zip(offsets.tolist(), offsets[1:].tolist())):
        places = candidates(data[start:end], 0, end - start)
        found = _resolve(data[start:end].tobytes(), places, kinds) if len(places) else []
        spans = batch["spans"][row].as_py() if found and not also_code else None
        code = [(s["start"], s["end"]) for s in spans or () if s["kind"] == CODE]
        yield [hit for hit in found if all(hit.end <= a or b <= hit.start for a, b in code)]


def _resolve(text: bytes, places: NDArray[np.int64], kinds: Collection[str]) -> list[Hit]:
    found: list[Hit] = []
    for start, end, what in places.tolist():
        found += (hit for hit in _FINDERS[what](text, start, end) if hit.kind in kinds)
    if len(found) > 1:
        found = sorted(set(found), key=lambda h: (KINDS.index(h.kind), h.start - h.end, h.start))
    taken = bytearray(len(text) if len(found) > 1 else 0)
    out: list[Hit] = []
    for hit in found:
        if not any(taken[hit.start : hit.end]):
            out.append(hit)
            taken[hit.start : hit.end] = b"\1" * len(taken[hit.start : hit.end])
    return sorted(out)


@nb.njit(cache=True)
def _digit(c: np.uint8) -> bool | np.bool:
    return 48 <= c <= 57


@nb.njit(cache=True)
def _word(c: np.uint8) -> bool | np.bool:
    return 48 <= c <= 57 or 97 <= c <= 122 or 65 <= c <= 90 or c == 95 or c >= 128


@nb.njit(cache=True)
def _hex(c: np.uint8) -> bool | np.bool:
    return 48 <= c <= 57 or 97 <= c <= 102 or 65 <= c <= 70


@nb.njit(cache=True)
def candidates(data: U8, lo: int, hi: int) -> NDArray[np.int64]:
    """Places worth a look, (n, 3) int64: start, end, and what it might be. Linear in the length of the text."""
    out = np.empty((16, 3), np.int64)
    count = 0
    number_until = token_until = six_until = last = lo
    for i in range(lo, hi):
        c = data[i]
        what = start = end = -1
        if c == 64:
            if i > lo and i + 1 < hi and (_word(data[i - 1]) or data[i - 1] == 45 or data[i - 1] == 43) and _word(data[i + 1]):
                start, end, what = i, i + 1, AT
                while start > lo and i - start < 64 and (_word(data[start - 1]) or 37 <= data[start - 1] <= 46) and data[start - 1] != 44:
                    start -= 1
                while end < hi and end - i < 254 and (_word(data[end]) or data[end] == 45 or data[end] == 46):
                    end += 1
        elif c == 45 and i + 10 < hi and data[i + 5] == 66 and data[i + 6] == 69 and data[i + 7] == 71 and data[i + 1] == 45:
            start, end, what = i, min(hi, i + 16384), KEY
        elif i > lo and _word(data[i - 1]) and data[i - 1] < 128:
            continue
        elif _digit(c) or c == 43 or c == 40:
            begins = _digit(c) or (i + 1 < hi and (_digit(data[i + 1]) or data[i + 1] == 40))
            if begins and i >= number_until:
                j, digits, dots = i, 0, 0
                last = i
                while (
                    j < hi and j - i < 64 and (_digit(data[j]) or data[j] == 32 or data[j] == 43 or (40 <= data[j] <= 47 and data[j] != 44))
                ):
                    if _digit(data[j]):
                        digits += 1
                        last = j
                    dots += 1 if data[j] == 46 else 0
                    j += 1
                number_until = j
                if digits >= 7 or (digits >= 4 and dots >= 3):
                    start, end, what = i, last + 1, NUMBER
        if count + 4 > out.shape[0]:
            more = np.empty((2 * out.shape[0], 3), np.int64)
            more[:count] = out[:count]
            out = more
        if what >= 0:
            out[count, 0], out[count, 1], out[count, 2] = start, end, what
            count += 1
        if not _word(c) or (i > lo and _word(data[i - 1]) and data[i - 1] < 128):
            continue
        if 65 <= c <= 90 and i + 14 < hi and 65 <= data[i + 1] <= 90 and _digit(data[i + 2]) and _digit(data[i + 3]):
            out[count, 0], out[count, 1], out[count, 2] = i, min(hi, i + 44), BANK
            count += 1
        if (c == 50 or c == 51) and i >= six_until and i + 4 < hi and data[i + 4] == 58 and (i == lo or data[i - 1] != 58):
            j = i
            while j < hi and j - i < 40 and (_hex(data[j]) or data[j] == 58):
                j += 1
            six_until = j
            out[count, 0], out[count, 1], out[count, 2] = i, j, SIX
            count += 1
        if i >= token_until and c < 128:
            j, digits, letters = i, 0, 0
            while j < hi and data[j] < 128 and (_word(data[j]) or data[j] == 43 or 45 <= data[j] <= 47 or data[j] == 61):
                digits += 1 if _digit(data[j]) else 0
                letters += 1 if data[j] >= 65 else 0
                j += 1
            token_until = j
            if j - i >= 16 and digits > 0 and letters > 0:
                out[count, 0], out[count, 1], out[count, 2] = i, j, TOKEN
                count += 1
    return out[:count]


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


DOMAINS = _words("""
    ac ad ae af ag ai al am ao aq ar as at au aw ax az ba bb bd be bf bg bh bi bj bm bn bo br bs bt bw by bz ca cc cd cf cg ch ci
    ck cl cm cn co cr cu cv cw cx cy cz de dj dk dm do dz ec ee eg er es et eu fi fj fk fm fo fr ga gb gd ge gf gg gh gi gl gm gn
    gp gq gr gs gt gu gw gy hk hm hn hr ht hu id ie il im in io iq ir is it je jm jo jp ke kg kh ki km kn kp kr kw ky kz la lb lc
    li lk lr ls lt lu lv ly ma mc md me mg mh mk ml mm mn mo mp mq mr ms mt mu mv mw mx my mz na nc ne nf ng ni nl no np nr nu nz
    om pa pe pf pg ph pk pl pm pn pr ps pt pw py qa re ro rs ru rw sa sb sc sd se sg sh si sk sl sm sn so sr ss st su sv sx sy sz
    tc td tf tg th tj tk tl tm tn to tr tt tv tw tz ua ug uk us uy uz va vc ve vg vi vn vu wf ws ye yt za zm zw com net org edu
    gov mil int info biz name pro aero coop museum jobs mobi travel tel cat asia post app dev online site shop store tech xyz club
    cloud blog email live news space website world agency academy digital group life company solutions systems software tools top
    icu vip wiki work studio design media social network center institute university health care legal law consulting engineering
    science foundation page berlin london paris tokyo nyc swiss wien hamburg koeln bayern scot wales eus gal
""")
"""Top-level domains: the countries', and the generic ones in common use."""

_EMAIL = re.compile(
    r"[A-Za-z0-9_](?:[A-Za-z0-9._%+'-]{0,62}[A-Za-z0-9_+-])?@((?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.)+([A-Za-z]{2,24}))"
)
_NO_ONE = _words("git hg svn noreply no-reply donotreply do-not-reply")
_NO_HOST = re.compile(
    r"(?:your|my|some)?-?(?:domain|host|company|email|server|site|provider)\.(?:com|org|net)|(?:foo|bar|baz|acme|xyz|abc)\.com"
)
_NO_PASSWORD = re.compile(r"\W*(?:user|pass(?:word|wd)?|pw|pwd|secret|token|foo|bar|x+|\*+|\.+)\W*|[<{$%\[].*", re.IGNORECASE)
_LOGIN = re.compile(r"://[^\s/@:]{0,64}:([^\s/@]{3,64})@$")


def _emails(text: bytes, start: int, end: int) -> Iterator[Hit]:
    window = text[start:end].decode("latin-1")
    found = next((m for m in _EMAIL.finditer(window)), None)
    before = text[max(0, start - 80) : start + window.index("@") + 1].decode("latin-1")
    login = _LOGIN.search(before) if "://" in before else None
    if login:
        at = start + window.index("@")
        if not _NO_PASSWORD.fullmatch(login[1]):
            yield Hit(at - len(login[1]), at, "secret")
        return
    if found is None or re.search(r"://[^\s/]*$", before):
        return
    host = found[1].lower()
    labels = host.split(".")
    after = text[start + found.end() : start + found.end() + 1]
    if (
        labels[-1] not in DOMAINS
        or (len(labels) == 2 and labels[1] in ("py", "sh"))  # rather a file than Paraguay
        or "example" in labels
        or (labels[-2].isdigit() and len(labels[-2]) < 3)  # precision@5.com
        or _NO_HOST.fullmatch(host)
        or after == b"@"
        or (after == b":" and b"/" in text[end : end + 80].split(b" ")[0])
    ):
        return
    if found[0].partition("@")[0].lower() in _NO_ONE or text[start + found.start() - 1 : start + found.start()] == b"@":
        return
    yield Hit(start + found.start(), start + found.end(), "email")


_CALLING = (
    r"(?:1|7|2[07]|3[0-469]|4[013-9]|5[1-8]|6[0-6]|8[1246]|9[0-58]|2(?:1[1-368]|[2-6]\d|9[01789])|3[578]\d|42[013]|50\d|59\d|67[02-9]"
    r"|68\d|69[0-2]|85[02356]|88[06]|96[0-8]|97[0-79]|99[2-8])"
)
_NUMBERS = re.compile(
    r"(?<![\w.+-])(?:"
    r"(?P<ip>\d{1,3}(?:\.\d{1,3}){3})(?=/\d|:\d|[^\w.]|\.(?!\d)|$)"
    r"|(?P<card>\d{4}(?:[ -]?)\d{4}(?:[ -]?)\d{4}(?:[ -]?)\d{4}|3[47]\d{2}[ -]?\d{6}[ -]?\d{5}|3[0689]\d{2}[ -]?\d{6}[ -]?\d{4})"
    r"(?![\w-]|[. ]\d)"
    r"|(?P<ssn>\d{3}[- ]\d{2}[- ]\d{4})(?![\w-]|[. ]\d)"
    rf"|(?P<plus>\+{_CALLING}(?:[ .\-/]?\(?\d{{1,5}}\)?){{1,6}}[ .\-/]?\d{{1,5}})(?![\w-]|\.\d)"
    r"|(?P<nanp>(?:1[ .-])?(?:\([2-9]\d\d\) ?|[2-9]\d\d(?P<sep>[ .-]))[2-9]\d\d[ .-]\d{4})(?![\w-]|[. ]\d)"
    r"|(?P<form>0[1-9](?P<gap>[ .])\d\d(?:(?P=gap)\d\d){3}|0\d{1,3}-\d{3,4}-\d{4}|0(?:120|800)-\d{3}-\d{3})(?![\w-]|[. ]\d)"
    r"|(?P<cued>\(?\d{1,15}(?:\)?[ .\-/]{1,3}\(?\d{1,8}){0,5})(?!\w)"
    r")",
    re.ASCII,
)
_PHONE_CUE = re.compile(
    r"(?:\b(?:tel|phone|telephone|call|fax|mobile|mob|cell|whatsapp|hotline|telefon|telefax|handy|t[ée]l[ée]phone|tel[ée]fono|telefone|celular"
    r"|m[óo]vil|sms)|тел|телефон|電話|电话|手机|전화|☎|📞)[.:)\]]*\s*(?:no\.?|number|is|us|at|on|me|nr\.?|:|=)?[\s:]*$",
    re.IGNORECASE,
)
_SSN_CUE = re.compile(r"(?:ssn|social security)[^.\n]{0,16}$", re.IGNORECASE)
_ADDRESS_CUE = re.compile(r"://$|\b(?:ip|ipv4|address|addr|host|ping|client|peer|gateway|dns)\W{0,3}(?:is|of|at|=)?\W{0,3}$", re.IGNORECASE)
_VERSION_CUE = re.compile(
    r"(?:\bv|versi[oó]ns?|release|rel|build|section|chapter|clause|§|chrome|firmware|driver|table|figure|fig|annex|appendix|item|no|#|\bto|\bthan|\band)\W{0,2}$|[-_/@=<>~^]$",
    re.IGNORECASE,
)
_RESOLVERS = _words("8.8.8.8 8.8.4.4 1.1.1.1 1.0.0.1 9.9.9.9 149.112.112.112 208.67.222.222 208.67.220.220 4.2.2.2 4.2.2.1")
_SHOWN_CARDS = _words("""
    4111111111111111 4242424242424242 4012888888881881 4222222222222 4000056655665556 5555555555554444 5105105105105100 5200828282828210
    5454545454545454 378282246310005 371449635398431 378734493671000 6011111111111117 6011000990139424 6011981111111113 3530111333300000
    3566002020360505 30569309025904 38520000023237 3056930009020004 36227206271667 2223003122003222 4444333322221111 4917610000000000
""")
_SHOWN_BANKS = _words(
    "GB82WEST12345698765432 GB29NWBK60161331926819 DE89370400440532013000 FR1420041010050500013M02606 GB33BUKB20201555555555"
)
_SHOWN_SSN = re.compile(r"078-05-1120|219-09-9999|123-45-6789|987-65-43\d\d")
_ISSUERS = re.compile(
    r"4\d{15}|(?:5[1-5]\d\d|222[1-9]|22[3-9]\d|2[3-6]\d\d|27[01]\d|2720)\d{12}|3[47]\d{13}|(?:6011|65\d\d|64[4-9]\d|35\d\d|62\d\d)\d{12}|3(?:0[0-5]|[68]\d)\d{11}"
)


def _numbers(text: bytes, start: int, end: int) -> Iterator[Hit]:
    window = text[max(0, start - 1) : min(len(text), end + 2)].decode("latin-1")
    base = max(0, start - 1)
    at = start - base
    while found := _NUMBERS.search(window, at, len(window)):
        where = base + found.start()
        before = text[max(0, where - 32) : where].decode("utf-8", "ignore")
        kind = _number(found, before)
        at = found.end() if kind or found[0][0] != "(" else found.start() + 1  # a bracket may stand before any of them
        if kind:
            yield Hit(where, base + found.end(), kind)


def _number(found: re.Match[str], before: str) -> str | None:
    """What a run of digits is, told from its form and from what stands before it."""
    shown = found[0]
    form = next(name for name in ("ip", "card", "ssn", "plus", "nanp", "form", "cued") if found[name] is not None)
    digits = re.sub(r"\D", "", shown)
    varied = len(set(digits)) >= 3
    if form == "ip":
        return "ip" if _public(shown, before) else None
    if form == "card" and _ISSUERS.fullmatch(digits) and luhn(digits) and digits not in _SHOWN_CARDS and len(set(digits)) >= 5:
        return "card"
    if form == "ssn":
        area, group, serial = digits[:3], digits[3:5], digits[5:]
        possible = area not in ("000", "666") and area < "900" and group != "00" and serial != "0000" and not _SHOWN_SSN.fullmatch(shown)
        return "ssn" if possible and (" " not in shown or _SSN_CUE.search(before)) else None
    if re.search(r"555[ .-]?01\d\d$", shown) or not varied:
        return None
    if form == "plus" and 8 <= len(digits) <= 15:
        return None if re.fullmatch(r"\+\d+\.\d+", shown) else "phone"  # a decimal number with its sign
    if form == "nanp" and shown[1:3] != "11" and (found["sep"] != "." or shown.count(".") == 2):
        return "phone" if found["sep"] != " " or _PHONE_CUE.search(before) or shown.startswith("1") else None
    if form == "form":
        return "phone"
    return "phone" if 7 <= len(digits) <= 15 and _PHONE_CUE.search(before) else None


def luhn(digits: str) -> bool:
    """Whether the last digit is Luhn's check digit of the others: every second one from the right doubled, digit sums, ≡ 0 mod 10."""
    return sum(int(d) if i % 2 == 0 else sum(divmod(2 * int(d), 10)) for i, d in enumerate(reversed(digits))) % 10 == 0


def _public(shown: str, before: str) -> bool:
    """Whether four numbers are the address of someone's machine, and not a version."""
    try:
        address = ipaddress.IPv4Address(shown)
    except ValueError:
        return False
    if not address.is_global or address.is_multicast or shown in _RESOLVERS:
        return False
    if _ADDRESS_CUE.search(before):
        return True
    return (
        max(address.packed) >= 32 and address.packed[0] > 9 and sum(b == 0 for b in address.packed) < 2 and not _VERSION_CUE.search(before)
    )


def _addresses(text: bytes, start: int, end: int) -> Iterator[Hit]:
    shown = text[start:end].decode().rstrip(":") if not text[start:end].endswith(b"::") else text[start:end].decode()
    try:
        address = ipaddress.IPv6Address(shown)
    except ValueError:
        return
    documentation = (int(address) >> 108) == 0x3FFF0 or (int(address) >> 96) == 0x20010DB8
    if shown.count(":") >= 2 and not documentation and int(address) & ((1 << 96) - 1):
        yield Hit(start, start + len(shown), "ip")


_COUNTRIES = {
    15: "NO", 16: "BE", 18: "DK FI FO GL NL", 19: "MK SI", 20: "AT BA EE KZ LT LU XK", 21: "CH HR LI LV",
    22: "BG BH CR DE GB GE IE ME RS VA", 23: "AE GI IL IQ", 24: "AD CZ ES MD PK RO SA SE SK TN VG", 25: "PT", 26: "IS TR",
    27: "FR GR IT MC MR SM", 28: "AL AZ BY CY DO GT HU LB PL", 29: "BR EG PS QA UA", 30: "JO KW MU", 31: "MT SC", 32: "LC",
}  # fmt: skip
_LENGTHS = {country: size for size, countries in _COUNTRIES.items() for country in countries.split()}


def _banks(text: bytes, start: int, end: int) -> Iterator[Hit]:
    size = _LENGTHS.get(text[start : start + 2].decode())
    if size is None:
        return
    found = re.match(rb"[A-Z]{2}[0-9]{2}(?:[ -]?[A-Z0-9]){%d}(?![A-Za-z0-9])" % (size - 4), text[start:end])
    if found is None:
        return
    plain = re.sub(rb"[ -]", b"", found[0]).decode()
    if int("".join(str(int(c, 36)) for c in plain[4:] + plain[:4])) % 97 == 1 and plain not in _SHOWN_BANKS:
        yield Hit(start, start + found.end(), "iban")


_TOKENS = re.compile(
    r"(?:(?:AKIA|ASIA)[0-9A-Z]{16}(?![0-9A-Za-z])|gh[pousr]_[A-Za-z0-9]{36,}|github_pat_[A-Za-z0-9_]{40,}|glpat-[\w-]{20,}|xox[abeprs]-[\w-]{20,}"
    r"|sk-(?:ant-|proj-|svcacct-)?[\w-]{20,}|[srp]k_live_[0-9A-Za-z]{16,}|rk_live_[0-9A-Za-z]{16,}|AIza[\w-]{35}|ya29\.[\w-]{20,}|hf_[A-Za-z0-9]{30,}"
    r"|npm_[A-Za-z0-9]{36}|pypi-[\w-]{50,}|dop_v1_[0-9a-f]{64}|SG\.[\w-]{16,}\.[\w-]{30,}|shp(?:at|ss|ca)_[0-9a-f]{32}|EAAC[\w]{40,}"
    r"|eyJ[\w-]{8,}\.eyJ[\w-]{8,}\.[\w-]{16,})"
)
_NAMED = re.compile(
    r"(?:api[_ -]?key|secret|token|passw(?:or)?d|passphrase|access[_ -]?key|client[_ -]?secret|auth)[\w-]{0,16}"
    r"[\"']?\s{0,3}(?::|=|=>|\bis\b)\s{0,3}"
    r"(?:bearer\s)?[\"'`]?$|\bbearer\s$",
    re.IGNORECASE,
)
_SHOWN = re.compile(r"example|sample|dummy|placeholder|your|change|xxxx|1234567|abcdef|00000|test", re.IGNORECASE)


def _secrets(text: bytes, start: int, end: int) -> Iterator[Hit]:
    window = text[start : min(end, start + 4096)].decode("latin-1")
    eq = re.match(r"[\w-]{2,40}=(?=[^=])", window)
    for offset in (0, eq.end()) if eq else (0,):
        found = _TOKENS.match(window, offset)
        if found and entropy(found[0]) >= 3 and not _SHOWN.search(found[0]) and not _path(found[0], 0):
            yield Hit(start + found.start(), start + found.end(), "secret")
            return
        value = re.compile(r"[A-Za-z0-9+/_-]{16,}={0,2}").match(window, offset)
        if value is None or entropy(value[0]) < 3.5 or not re.search("[0-9]", value[0]) or _SHOWN.search(value[0]) or _path(value[0], 1):
            continue
        if _NAMED.search(text[max(0, start + offset - 48) : start + offset].decode("latin-1")):
            yield Hit(start + value.start(), start + value.end(), "secret")
            return


def _path(value: str, odd: int) -> bool:
    """Whether a value is made of words and numbers, but for `odd` of its parts: a path, or a name in snake or kebab case."""
    parts = re.split(r"[/_-]", value)
    return len(parts) > 2 and sum(not (not p or p.isalpha() or p.isdigit()) for p in parts) <= odd


def entropy(text: str) -> float:
    """Bits a character, of the characters' frequencies: −Σ p log₂ p."""
    return -sum(n / len(text) * math.log2(n / len(text)) for n in Counter(text).values())


_BLOCK = re.compile(
    rb"-----BEGIN ((?:[A-Z0-9]+ ){0,3})PRIVATE KEY(?: BLOCK)?-----\s(?:[^-]|-(?!----)){40,16000}-----END \1PRIVATE KEY(?: BLOCK)?-----"
)


def _keys(text: bytes, start: int, end: int) -> Iterator[Hit]:
    found = _BLOCK.match(text, start, end)
    if found and re.search(rb"[A-Za-z0-9+/=\s]{40}", found[0][found[0].index(b"-----", 5) + 5 : -20]):
        yield Hit(start, found.end(), "secret")


_FINDERS = {AT: _emails, NUMBER: _numbers, TOKEN: _secrets, BANK: _banks, SIX: _addresses, KEY: _keys}
