"""Personal data and secrets: precision and recall on planted examples, and placeholders in their places."""

from __future__ import annotations

import random
import string
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from upslope.data import pii, shards
from upslope.data.annotators.pii import Pii
from upslope.data.rewriters.lines import Lines
from upslope.data.rewriters.mask import Mask
from upslope.data.rewriting import RewriteShard

R = random.Random(11)


def words(text: str) -> list[str]:
    return text.split()


def pick(alphabet: str, n: int) -> str:
    return "".join(R.choice(alphabet) for _ in range(n))


def check_digit(body: str) -> str:
    """Luhn's check digit by trying all ten on the textbook sum."""
    for d in string.digits:
        total = 0
        for i, c in enumerate(reversed(body + d)):
            n = int(c) * (1 + i % 2)
            total += n - 9 if n > 9 else n
        if total % 10 == 0:
            return d
    raise AssertionError


def card(prefix: str, size: int) -> str:
    body = prefix + pick(string.digits, size - 1 - len(prefix))
    return body + check_digit(body)


def iban(country: str, account: str) -> str:
    plain = "".join(str(string.digits.find(c)) if c.isdigit() else str(ord(c) - 55) for c in account + country + "00")
    return f"{country}{98 - int(plain) % 97:02d}{account}"


def groups(text: str, sizes: tuple[int, ...], gap: str) -> str:
    parts, at = [], 0
    for size in sizes:
        parts.append(text[at : at + size])
        at += size
    return gap.join(parts)


EMAILS = words("""
anna.keller@uni-heidelberg.de j.r.o'brien@maths.tcd.ie bob+lists@fastmail.com k_tanaka@riken.jp s.ivanova@yandex.ru
first.last@sub.department.company-x.co.uk x@y.io m.garcia-lopez@correo.ugr.es 12345@qq.com info@bakery-schmidt.de sales@acme-tools.com.br
jane_doe99@gmail.com peter@lists.debian.net root@puffin.kernelbox.org a.b.c.d@e-f.fr noel.dupont@orange.fr UPPER.CASE@OUTLOOK.COM
mixed.Case@Proton.me contact@museum-of-bread.museum w.jones@nhs.net press@city.gov team@rocketlabs.space hello@getplants.shop
dev@openproject.dev support@printers.support1.com kim.minsu@snu.ac.kr li.wei@tsinghua.edu.cn a%b@relay.net ceo@startup.ai
olga@kiev.ua tom@tom-s-garden.co.nz editor@lemonde.fr ana.silva@usp.br n.nguyen@vnu.edu.vn q@x.org trailing-hyphen-@aol.com
""")
PHONES = (
    """
+1 212-867-5309|+1 (415) 867-2234|+14158672234|+44 20 7183 8750|+44 (0)20 7183 8750|+49 30 901820|+49-89-1234-5670|+49 (0)171 5557382
+33 1 42 68 53 00|+33142685300|+34 915 42 10 00|+39 06 6982 3457|+31 20 794 0800|+7 495 739-70-00|+7 (812) 346-15-02|+81 3-5253-4111
+82 2 2100 2114|+82-10-4821-7736|+86 10 6512 3921|+86 138 1234 9876|+91 98200 43210|+55 11 3091-3116|+61 2 9265 9333|+27 21 487 6800
+353 1 896 1000|+420 224 491 111|+48 22 552 0000|+351 21 792 1000|+90 212 359 7000|+380 44 279 62 43|+972 3 640 8111|+1.704.948.4566
+86-21-6405-3201|(212) 867-5309|(415) 867 2234|415-867-2234|415.867.2234|1-800-273-8255|1 800 273 8255|01 42 68 53 17|06.12.34.98.76
03-5253-4118|090-4821-7736|010-4821-7736|0120-345-678
""".replace("\n", "|")
    .strip("|")
    .split("|")
)
CUED = (
    """
Tel.: 030 901 820 17|Telefon: 0171 5557382|phone 020 7183 8750|Phone: 867-5309|Fax: 06221/54-2317|Tel 8 (495) 739-70-23
call 13812349876|mobile: 07700 123456|тел. 8 812 346 15 02|電話 03 5253 4113|WhatsApp: 5511930913116|Téléphone : 0142685317|Cell: 4158672239
""".replace("\n", "|")
    .strip("|")
    .split("|")
)
IPS = words("""
203.0.114.77 81.169.145.156 185.60.216.35 151.101.1.69 93.184.216.34 52.95.110.1 217.160.0.201 46.4.84.25 134.102.206.12 78.46.90.15
104.244.42.65 199.232.38.133 31.13.92.36 138.201.81.199 212.27.48.10 62.210.16.6 91.198.174.192 129.187.255.151
2a00:1450:4001:81b::200e 2606:2800:220:1:248:1893:25c8:1946 2001:638:902:1:202:b3ff:feee:5dbd 2a02:8109:9ac0:1f00:e5b1:22:4d9a:81
2607:f8b0:4005:805::200e 2400:cb00:2048:1::6810:a5f2
""")
SSNS = words("536-22-8726 212-45-9021 001-01-4545 765-12-0034 411-90-1234 150-33-2817 899-99-9999 624-08-3371")
CARDS = [card(p, 16) for p in ("4539", "4716", "4929", "5286", "5412", "5167", "2221", "2521", "2719", "6011", "6502", "3528")]
CARDS += [card(p, 15) for p in ("34", "37", "3714")] + [card(p, 14) for p in ("300", "36", "38")]
CARDS += [groups(card(p, 16), (4, 4, 4, 4), g) for p, g in (("4532", " "), ("5301", "-"), ("6011", " "), ("4024", "-"), ("2311", " "))]
CARDS += [groups(card("37", 15), (4, 6, 5), " "), groups(card("36", 14), (4, 6, 4), "-")]
IBANS = [
    iban(c, pick(string.digits, n - 4)) for c, n in (("DE", 22), ("ES", 24), ("AT", 20), ("BE", 16), ("PL", 28), ("CZ", 24), ("SE", 24))
]
IBANS += [
    iban("GB", "NWBK" + pick(string.digits, 14)),
    iban("NL", "INGB" + pick(string.digits, 10)),
    iban("IE", "AIBK" + pick(string.digits, 14)),
]
IBANS += [
    iban("FR", pick(string.digits, 10) + pick(string.digits + "ABCDEF", 11) + pick(string.digits, 2)),
    iban("NO", pick(string.digits, 11)),
]
IBANS += [groups(iban("DE", pick(string.digits, 18)), (4, 4, 4, 4, 4, 2), " "), groups(iban("BE", pick(string.digits, 12)), (4,) * 4, " ")]
IBANS += [groups(iban("GB", "BARC" + pick(string.digits, 14)), (4, 4, 4, 4, 4, 2), " "), iban("CH", pick(string.digits, 17))]
ALNUM = string.ascii_letters + string.digits
TOKENS = ["AK" + "IA" + pick(string.ascii_uppercase + "234567", 16), "gh" + "p_" + pick(ALNUM, 36), "gh" + "s_" + pick(ALNUM, 36)]
TOKENS += ["github" + "_pat_" + pick(ALNUM, 22) + "_" + pick(ALNUM, 59), "gl" + "pat-" + pick(ALNUM, 20), "s" + "k-" + pick(ALNUM, 48)]
TOKENS += ["s" + "k-ant-" + pick(ALNUM, 40), "s" + "k_live_" + pick(ALNUM, 24), "AI" + "za" + pick(ALNUM, 35), "h" + "f_" + pick(ALNUM, 34)]
TOKENS += ["xo" + "xb-" + pick(string.digits, 12) + "-" + pick(ALNUM, 24), "np" + "m_" + pick(ALNUM, 36), "ya" + "29." + pick(ALNUM, 60)]
TOKENS += ["eyJ" + pick(ALNUM, 33) + ".eyJ" + pick(ALNUM, 60) + "." + pick(ALNUM + "-_", 43) for _ in range(3)]
NAMED = [f'{name}"{pick(ALNUM, size)}"' for name, size in (("api_key = ", 32), ("apiKey: ", 40), ("SECRET_KEY=", 50), ("auth_token: ", 40))]
NAMED += [
    f"aws_secret_access_key = {pick(ALNUM + '/+', 40)}",
    f"Authorization: Bearer {pick(ALNUM, 48)}",
    f"client_secret={pick(ALNUM, 32)}",
]
LOGINS = [f"postgres://app:{pick(ALNUM, 12)}@db.internal.net/x", f"https://deploy:{pick(ALNUM, 20)}@git.hosting.com/r.git"]
BLOCK = "-----BEGIN {0}PRIVATE KEY-----\n" + "\n".join(pick(ALNUM + "+/", 64) for _ in range(8)) + "\n-----END {0}PRIVATE KEY-----"
BLOCKS = [BLOCK.format(name) for name in ("RSA ", "", "OPENSSH ", "EC ")]

PROSE = [
    "{}", "Write to {}, please.", "| {} | yes |", "Please use ({}) until Monday.", "- {}\n- nothing else", '{{"value": "{}"}}',
    "Kontakt: {}.",     "Nous avons reçu {} hier soir", "お問い合わせ：{} まで", 
    "He said “{}” and left.", "the value was {}; the rest is known", "<{}>",
    "`{}`",
]  # fmt: skip
IP_PROSE = [
    "from {} port 22",
    "Failed login from {}.",
    "IP: {}",
    "host {} is up",
    "http://{}/",
    "[{}]",
    "The server at {} answered",
    "- {}",
]


def planted() -> list[tuple[str, str, str]]:
    """(text, what stands in it, its kind)."""
    out: list[tuple[str, str, str]] = []
    turn = 0
    for kind, values in (("email", EMAILS), ("phone", PHONES), ("ssn", SSNS), ("card", CARDS), ("iban", IBANS), ("secret", TOKENS)):
        for value in values:
            for _ in range(1 + (kind in ("iban", "ssn"))):
                out.append((PROSE[turn % len(PROSE)].format(value), value, kind))
                turn += 1
    out += [(IP_PROSE[i % 4 if ":" in v else i % len(IP_PROSE)].format(v), v, "ip") for i, v in enumerate(IPS)]
    for text in CUED:
        start = next(i for i, c in enumerate(text) if c.isdigit() or c == "(")
        out.append((f"Office. {text}\nOpen daily", text[start:], "phone"))
    for text in NAMED:
        value = text.split('"')[-2] if '"' in text else text.replace("client_secret=", "").split(" ")[-1]
        out.append((f"config:\n{text}\n", value, "secret"))
    out += [(f"use {text} now", text.split("@")[0].rpartition(":")[2], "secret") for text in LOGINS]
    out += [(f"key:\n{text}\nend", text, "secret") for text in BLOCKS]
    return out


INNOCENT = (
    """
user@example.com|admin@example.org|joe@mail.example.net|x@host.example|y@server.test|z@foo.invalid|root@localhost|me@example.co.jp
git@github.com:torch/torch.git|git clone git@gitlab.com:a/b.git|noreply@github.com|logo@2x.png|icon@3x.svg|photo@home.jpeg|app@1.2.3
lodash@4.17.21|npm i react@18.2.0|getty@tty1.service|user@host|@property|@staticmethod def f()|@user@mastodon.social|a @ b|x@y|foo@bar
bar@baz.js|main@index.html|data@rest.yaml|page@v2.css|you@yourdomain.com|name@company.com|user@domain.com|https://user@host.org/path|@media
ssh://git@bitbucket.org/a/b|import a@b.c1|price @ 3.50 each|P@ssw0rd|r@nd0m|A@B@C|foo@|@bar.com|3 apples @ 20.50 USD|matrix A@B.T
version 1.2.3.4|v10.0.19041.1|Chrome/120.0.6099.109|release 4.7.4.1|build 10.0.22621.3|2.0.0.1|section 3.4.5.6|127.0.0.1|0.0.0.0
10.0.0.1|192.168.1.1|172.16.254.1|169.254.1.1|192.0.2.44|198.51.100.7|203.0.113.9|255.255.255.0|224.0.0.251|1.3.6.1.4.1.311.2|8.8.8.8
1.1.1.1|256.300.1.1|999.1.1.1|1.2.3|12.34.56.78.90|python-3.11.2.1|libssl 1.1.1.14|OID 2.5.29.17.3|==21.3.1.0|>=100.64.2.1|1.22.333.4444
10.0.0.0/8|192.168.0.0/16|version 111.0.5563.64|driver 535.104.5.12|firmware 47.1.2.33|::1|fe80::1|2001:db8::1|2001:db8:85a3::8a2e:370:7334
ff02::1|12:34:56|00:1a:2b:3c:4d:5e|std::vector|a::b::c|3fff:abc::1|2023:11:05|f00:bar|fd12:3456:789a::1|2020-01-02 10:20:30|20:15:00
2024-11-30|30/11/2024|2024-11-30T12:34:56Z|1,234,567.89|1234567|12345678901234567890|3.14159265358979|6.02214076e23|0x7fffffff|1e-10
978-3-16-148410-0|ISBN 0-306-40615-2|ISSN 2049-3630|10.1000/182|doi:10.1145/3292500.3330701|arXiv:2112.11446|1 2 3 4 5 6 7 8 9 10
100 200 300 400|12 34 56 78 90 12|0.001 0.002 0.003|1-2-3-4-5-6|2001-2003|pp. 1234-1267|lines 100-200|3 × 10 = 30|+1 -1 +2 -2|+0.5 +1.5
+10000000000|(1) 2 (3) 4|1000000 bytes|16777216|4294967296|18446744073709551615|9223372036854775807|2147483647|65536 131072|1 000 000 000
555-0123|(212) 555-0147|+1 212-555-0199|415-555-0100|000-00-0000|666-12-3456|900-12-3456|123-45-6789|078-05-1120|219-09-9999|12-345-6789
1234-56-789|111-11-11111|a123-45-6780|536-00-8726|4111 1111 1111 1111|4242424242424242|5555555555554444|378282246310005|6011111111111117
4539578763621487|1234 5678 9012 3456|4000000000000000|0000 0000 0000 0000|5105105105105100|49927398716|4539-5787 6362-1480x|9999888877776666
DE89370400440532013000|GB82 WEST 1234 5698 7654 32|DE00123456789012345678|FR7630006000011234567890188|XX12345678901234567890|AB12CDEF
GB29NWBK60161331926819|DE12 is a road|ES6 modules|ISO8601|AT90S2313 chip|NO12 345|RFC2606 and RFC5737|PL011 UART|IT0123456789
AKIAIOSFODNN7EXAMPLE|sk-your-api-key-goes-here-please-1|ghp_xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx|api_key = "YOUR_API_KEY"|token: string
password = os.environ["PASSWORD_1"]|secret: "changeme1234567890"|api_key="your-api-key-here-123"|sha256:9f86d081884c7d659a2feaa0c55ad015
commit 3f2a9c41d7e08b65aa90c1f4e27d5b3389ac0f12|d41d8cd98f00b204e9800998ecf8427e|550e8400-e29b-41d4-a716-446655440000|eyJhbGciOiJIUzI1NiJ9
https://user:password@host/|ftp://username:password@ftp.host.org/|mysql://root:${DB_PASS}@db.net/x|postgresql://user:secret@localhost
token = get_token_from_header_2(request)|sklearn.model_selection.KFold2|tokenizer: bert-base-uncased-v2-pretrained|
secret/data/team1/config/v2|data:image/png;base64,iVBORw0KGgo|max_position_embeddings=4096|--config-file=/etc/app/v1/conf.yaml|x86_64-unknown-linux-gnu-2.31
-----BEGIN PUBLIC KEY-----|-----BEGIN CERTIFICATE-----MIIB|-----BEGIN PRIVATE KEY-----\\n...\\n-----END PRIVATE KEY-----|https://x.org/a1b2c3d4e5f6a7b8c9d0
auth_method = "pam_unix_session_v2"|token_count: 1234567890123456789|access_key_id_format_v1|passwordless-login-2024-edition|TK-421|R2-D2
§ 230.6.2.1 of the act|chapter 12.40.3.2|Table 45.2.1.3|IEEE 802.11.1.2|Windows 10.0.19045.3803|from 2.4.1.33 to 2.4.1.34|ratio 16:9:4
""".replace("\n", "|")
    .strip("|")
    .split("|")
)


def test_planted_personal_data_is_found_and_innocent_text_is_not() -> None:
    missed, wrong = [], []
    kinds: Counter[str] = Counter()
    for text, value, kind in planted():
        found = [(text.encode()[h.start : h.end].decode(), h.kind) for h in pii.find(text.encode())]
        kinds[kind] += 1
        if (value, kind) not in found:
            missed.append((kind, value, found))
        wrong += [(text, f) for f in found if f != (value, kind)]
    false = [(text, hit.kind) for text in INNOCENT for hit in pii.find(text.replace("\\n", "\n").encode())]
    total = sum(kinds.values())
    recall = 1 - len(missed) / total
    precision = (total - len(missed)) / (total - len(missed) + len(wrong) + len(false))
    print(f"{dict(kinds)}; recall {recall:.3f}, precision {precision:.3f}; missed {missed}; wrong {wrong}; false {false}")
    assert total >= 200 and len(INNOCENT) >= 200 and set(kinds) == set(pii.KINDS)
    assert recall >= 0.99 and precision >= 0.997


def test_luhn_and_entropy() -> None:
    assert pii.luhn("79927398713") and not any(pii.luhn("7992739871" + d) for d in "012456789")
    assert pii.entropy("aaaa") == 0 and pii.entropy("abcd") == pytest.approx(2) and pii.entropy("aabb") == pytest.approx(1)


def rows(*texts: str, spans: list[tuple[int, int, int]] | None = None) -> pa.RecordBatch:
    given = [dict(zip(("start", "end", "kind"), s)) for s in spans] if spans else None
    return shards.rows_to_batch([{"text": t, "spans": given} for t in texts], shards.TEXT)


def test_counts_by_kind_and_code_on_request() -> None:
    text = "Mail a.b@gmail.com or c.d@gmail.com.\n\n```\nhost = '81.169.145.156'\n```"
    code = text.index("```")
    batch = rows(text, "nothing", "", spans=[(0, code, shards.PROSE), (code, len(text), shards.CODE)])
    found = Pii()(batch).to_pylist()
    assert (found[0]["email"], found[0]["ip"], found[0]["total"]) == (2, 1, 3) and set(found[1].values()) == {0} == set(found[2].values())
    assert Pii(also_code=False)(batch).to_pylist()[0]["total"] == 2
    halves = [r for i in range(3) for r in Pii()(batch.slice(i, 1)).to_pylist()]
    assert halves == found


def test_mask_puts_placeholders_and_maps_spans() -> None:
    text = "Ünï: a.b@gmail.com\n\n```\nx = 'c.d@gmail.com'\n```\n\ncall +1 212-867-5309 now"
    raw = text.encode()
    a, b = raw.index(b"```"), raw.rindex(b"```") + 4
    batch = rows(text, spans=[(0, a, shards.PROSE), (a, b, shards.CODE), (b, len(raw), shards.PROSE)])
    texts, spans, notes = Mask()(batch)
    new = texts[0].as_py().encode()
    assert new.decode() == text.replace("a.b@gmail.com", "<EMAIL>").replace("+1 212-867-5309", "<PHONE>")
    cuts = [(s["start"], s["end"], s["kind"]) for s in spans[0].as_py()]
    a2, b2 = new.index(b"```"), new.rindex(b"```") + 4
    assert cuts == [(0, a2, 0), (a2, b2, 1), (b2, len(new), 0)]
    assert new[a2:b2] == raw[a:b]
    assert notes.to_pylist() == [{"masked": 2, **dict.fromkeys(pii.KINDS, 0), "email": 1, "phone": 1}]
    assert Mask(kinds=("phone",))(batch)[0][0].as_py().count("gmail") == 2
    everything = Mask(also_code=True)(batch)
    assert "gmail" not in everything[0][0].as_py() and everything[2].to_pylist()[0]["email"] == 2
    plain, none, _ = Mask()(rows("x", ""))
    assert plain.to_pylist() == ["x", ""] and (none is None or none.to_pylist() == [None, None])
    with pytest.raises(ValidationError, match="kinds"):
        Mask(kinds=("name",))  # type: ignore[arg-type]


def test_rewriters_write_shards(tmp_path: Path) -> None:
    text = "Mail a.b@gmail.com.\n\n```\nuse cookies\n```\n\nWe use cookies."
    code = text.index("```"), text.rindex("```") + 4
    spans = [(0, code[0], shards.PROSE), (*code, shards.CODE), (code[1], len(text), shards.PROSE)]
    shards.write(tmp_path / "in.parquet", pa.Table.from_batches([rows(text, "a.b@gmail.com", "", spans=None), rows(text, spans=spans)]))
    for step, wants, count in (
        (Mask(), [text.replace("a.b@gmail.com", "<EMAIL>"), "<EMAIL>", "", text.replace("a.b@gmail.com", "<EMAIL>")], [1, 1, 0, 1]),
        (Lines(), ["Mail a.b@gmail.com.\n\n```\n```", "a.b@gmail.com", "", text[: code[1]]], [2, 0, 0, 1]),
    ):
        out = tmp_path / step.column
        out.mkdir()
        RewriteShard(step=step, step_version=1)(tmp_path / "in.parquet", out)
        found = shards.read(out / "text.parquet").to_pylist()
        assert [r["text"] for r in found] == wants and [r["bytes"] for r in found] == [len(w) for w in wants]
        assert found[3]["code_bytes"] == code[1] - code[0] and found[0]["spans"] is None
        notes = shards.read(out / "columns.parquet")
        assert notes.column(0).to_pylist() == count


@settings(max_examples=60, deadline=None)
@given(st.lists(st.one_of(st.text(max_size=30), st.sampled_from([v for _, v, _ in planted()] + INNOCENT)), max_size=8), st.integers(0, 5))
def test_masked_text_is_the_text_with_the_hits_replaced(parts: list[str], cut: int) -> None:
    text = " ".join(parts)
    raw = text.encode()
    ends = sorted({0, len(raw), *(len(" ".join(parts[:i]).encode()) for i in range(cut))})
    spans = [(a, b, i % 2) for i, (a, b) in enumerate(zip(ends, ends[1:]))]
    batch = rows(text, spans=spans or [(0, 0, 0)])
    hits = pii.find(raw)
    assert all(h.start < h.end <= len(raw) for h in hits) and all(x.end <= y.start for x, y in zip(hits, hits[1:]))
    texts, new, _ = Mask(also_code=True)(batch)
    out, at = b"", 0
    for h in hits:
        out += raw[at : h.start] + f"<{h.kind.upper()}>".encode()
        at = h.end
    assert texts[0].as_py().encode() == out + raw[at:]
    assert new is not None
    found = new[0].as_py()
    assert found[0]["start"] == 0 and found[-1]["end"] == len(texts[0].as_py().encode())
    assert all(x["end"] == y["start"] for x, y in zip(found, found[1:]))


HOSTILE = [
    "1",
    "@",
    "a@",
    "a-1",
    "-----BEGIN RSA PRIVATE KEY-----\n",
    "2001:",
    "DE12",
    "+1 2 ",
    "x@y.com ",
    "://a:",
    "1.1.1.1.",
    "(",
    "a=1",
]


@pytest.mark.parametrize("part", HOSTILE)
def test_hostile_text_takes_linear_time(part: str) -> None:
    pii.find(part.encode() * (300_000 // len(part)))
