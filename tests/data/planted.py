"""A corpus with known contents: real pages, and in them evaluation items, near copies, templated pages and personal data.

`plant` writes it with the truth about it; `measure` puts the data steps to it and compares. Everything follows from (scale, seed).
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fastwarc.warc import ArchiveIterator, WarcRecordType

from upslope.config import Input, Source
from upslope.data import contamination
from upslope.data.annotators.overlap import Overlap
from upslope.data.artifacts import Corpus
from upslope.data.extract.charset import decode
from upslope.data.extract.html import extract
from upslope.data.links import Exact, MinHash, Skeleton
from upslope.data.ngrams import Item
from upslope.machine.context import Context
from upslope.stages.annotate import Annotate
from upslope.stages.dedup import Dedup
from upslope.tasks.families import cell

CRAWL = Path(__file__).parents[2] / "upslope" / "assets" / "crawl.warc.gz"
HOW = ("exact", "edited", "split")
JACCARD = (0.82, 0.99)


class Leak(NamedTuple):
    """Document `doc` holds an item, in this way."""

    doc: int
    item: str
    how: str


class Copy(NamedTuple):
    """Document `doc` is document `of` with edits; jaccard: of their 5-word shingles, counted in plain Python."""

    doc: int
    of: int
    jaccard: float


class Truth(NamedTuple):
    """What was planted. decoys: pages with an item whose numbers are all others. templates: host → documents. pii: document → kinds."""

    corpus: Corpus
    items: list[Item]
    leaks: list[Leak]
    decoys: list[int]
    copies: list[Copy]
    templates: dict[str, list[int]]
    pii: dict[int, tuple[str, ...]]


# ── pages ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def pages(count: int, least: int = 150) -> list[tuple[str, str]]:
    """(url, text) of English pages of the crawl with at least `least` words, in its order, none planted and none a copy of another."""
    found: list[tuple[str, str]] = []
    seen: set[str] = set()
    with open(CRAWL, "rb") as f:
        for record in ArchiveIterator(f, record_types=WarcRecordType.response, parse_http=True):
            if len(found) == count:
                break
            headers = dict(record.headers.items())
            if "WARC-Upslope-Planted" in headers or not headers["WARC-Upslope-Language"].startswith("en"):
                continue
            kind = record.http_headers["Content-Type"]
            text = extract(decode(record.reader.read(), kind.partition("charset=")[2]).text).text
            if len(text.split()) >= least and text[:500] not in seen:
                seen.add(text[:500])
                found.append((headers["WARC-Target-URI"], text))
    return found


# ── items ─────────────────────────────────────────────────────────────────────────────────────────────────────────

NAMES = ("Ada", "Bruno", "Carla", "Dmitri", "Elif", "Farid", "Greta", "Hugo", "Ines", "Jonas", "Kavita", "Luis", "Maren", "Oskar", "Priya")
PLACES = ("bakery", "harbour", "orchard", "library", "print shop", "ski lift", "tram depot", "pottery", "fish market", "saw mill")
THINGS = ("crates of plums", "clay bowls", "train tickets", "lanterns", "wool blankets", "glass jars", "brass bells", "maps", "oak boards")
OPENINGS = (
    "{n} works at the {p} and starts the week with {a} {t}.",
    "On the first morning of the fair, the {p} received {a} {t} from {n}.",
    "The {p} of {n}'s town keeps {a} {t} in its cellar.",
    "For a school trip {n} ordered {a} {t} from the {p} next door.",
)
MIDDLES = (
    "Every hour {b} of them are sold, but after {c} hours a cart brings {d} more.",
    "A storm ruins {b} of them, and {m} buys {c} of those that are left for {d} coins each.",
    "{m} takes {b} for a cousin, and on each of the next {c} days {d} new ones arrive.",
    "They are packed into boxes of {b}, of which {c} are sent abroad and {d} stay open on the counter.",
    "Of these, {b} are painted red, {c} are painted blue and {d} are given to {m} for nothing.",
)
ENDINGS = (
    "How many {t} are there when the {p} closes on the last evening?",
    "How many coins does {m} still owe if every one of the {t} costs {e} coins?",
    "What is the largest number of {t} that {n} can hand to each of {e} friends?",
    "After how many days will fewer than {e} {t} be left?",
)
SUBJECTS = ("lichen", "basalt", "copper wire", "the river otter", "sea ice", "the spinning jenny", "hot springs", "the lute", "barn owls")
ASKED = (
    "Which of the following best explains why {s} is found near {o} but hardly ever near {x}?",
    "A traveller compares {s} with {o}. Which observation would show that {x} matters more than both?",
    "What did the first studies of {s} claim about {o} before {x} had been described at all?",
    "Suppose that {s} vanished within a year. What would most likely happen to {o} and then to {x}?",
)
CLAIMS = (
    "It stores more heat than {x} does in winter", "Its age depends on the depth of {o}", "Only {s} keeps its shape under pressure",
    "The people who gathered {o} avoided {x}", "Light reaches {s} from below as well", "No one has compared {x} with {o} since then",
    "It grows where the soil holds little water", "Both were traded along the same coast",
)  # fmt: skip


def problem(r: random.Random, number: int) -> Item:
    """A word problem in one of many wordings."""
    n, m = r.sample(NAMES, 2)
    a, b, c, d, e = r.randint(120, 990), r.randint(13, 60), r.randint(13, 40), r.randint(13, 99), r.randint(13, 70)
    parts = [r.choice(OPENINGS), *r.sample(MIDDLES, r.choice([1, 1, 2])), r.choice(ENDINGS)]
    text = " ".join(parts).format(n=n, m=m, p=r.choice(PLACES), t=r.choice(THINGS), a=a, b=b, c=c, d=d, e=e)
    return Item(f"problem/{number}", "problems", text, str(a - b))


def choice(r: random.Random, number: int) -> Item:
    """A multiple-choice question."""
    s, o, x = r.sample(SUBJECTS, 3)
    options = tuple(c.format(s=s, o=o, x=x) for c in r.sample(CLAIMS, 4))
    return Item(f"choice/{number}", "choices", r.choice(ASKED).format(s=s, o=o, x=x), options[r.randrange(4)], options)


def made_items(r: random.Random, count: int) -> list[Item]:
    """Items of three benchmarks: word problems, multiple choice, and the longer ones of the built-in task families."""
    tasks = [d.task for family in ("cycle", "count", "nth") for d in cell(family, 4, "heldout", -(-count // 30), 0)]
    found = [Item(t.id, "tasks", t.prompt, str(t.truth["answer"])) for t in tasks if isinstance(t.truth, dict)]
    makers = (problem, problem, choice)
    while len(found) < count:
        made = makers[len(found) % 3](r, len(found))
        if all(made.question != f.question for f in found):
            found.append(made)
    return found


def whole(item: Item, options: Sequence[str] = ()) -> str:
    """An item as a page would show it."""
    given = options or item.options
    return "\n".join([item.question, *(f"{chr(65 + i)}. {o}" for i, o in enumerate(given))])


def edited(text: str, r: random.Random) -> str:
    """2–10 % of the words replaced, inserted or deleted; case, quotes, dashes and blanks changed."""
    words = text.split(" ")
    for i in r.sample(range(len(words)), max(1, round(len(words) * r.uniform(0.02, 0.1)))):
        words[i] = r.choice(["", f"{words[i]} indeed", r.choice(["small", "several", "usual", "rather"])])
    text = " ".join(w for w in words if w)
    for change in r.sample(range(4), 2):
        if change == 0:
            text = text.replace("'", "’").replace("-", "–")
        elif change == 1:
            text = text.replace(" ", "\u00a0", 3).replace(", ", " — ")
        elif change == 2:
            text = text.upper() if r.random() < 0.3 else text.replace(". ", "; ")
        else:
            text = text.replace(" the ", " the  ").replace("?", " ?")
    return text


def split(item: Item, r: random.Random) -> str:
    """An item torn over lines, list items, table cells, quotes, escapes or a fence, its options in another order."""
    text = whole(item, r.sample(item.options, len(item.options)))
    words = text.split()
    width = r.randint(5, 9)
    lines = [" ".join(words[i : i + width]) for i in range(0, len(words), width)]
    return r.choice(
        [
            "\n".join(lines),
            "\n\n".join(lines),
            "\n".join(f"{i}. {line}" for i, line in enumerate(lines, 1)),
            "\n".join(f"- {line}" for line in lines),
            "\n".join(f"> {line}" for line in lines),
            "| step | text |\n| --- | --- |\n" + "\n".join(f"| {chr(97 + i)}) | {line} |" for i, line in enumerate(lines)),
            "```text\n" + "\n".join(lines) + "\n```",
            "<p>" + "<br>".join(line.replace("'", "&#39;").replace(" ", "&nbsp;", 1) for line in lines) + "</p>",
            "\n".join(f"**{line}**" for line in lines),
        ]
    )


def other_numbers(text: str, r: random.Random) -> str:
    """The same problem with other numbers everywhere."""
    return re.sub(r"\d+", lambda m: str(int(m[0]) + r.randint(1, 9)), text)


# ── copies, templates, personal data ──────────────────────────────────────────────────────────────────────────────


def shingles(text: str) -> set[tuple[str, ...]]:
    words = re.findall(r"\w+", text.lower())
    return {tuple(words[i : i + 5]) for i in range(len(words) - 4)}


def copied(text: str, target: float, r: random.Random) -> tuple[str, float]:
    """The text with words replaced until the Jaccard similarity is near `target`, and what it is."""
    places = [m.span() for m in re.finditer(r"[A-Za-z]{3,}", text)]
    before = shingles(text)
    count = max(1, round(len(before) * (1 - target) / (5 * (1 + target))))
    for start, end in sorted(r.sample(places, min(count, len(places))), reverse=True):
        text = text[:start] + "".join(r.choice("bdfgklmnprstv") + r.choice("aeiou") for _ in range(3)) + text[end:]
    after = shingles(text)
    return text, len(before & after) / len(before | after)


TEMPLATES = {
    "https://shop.templates.example/p": (
        "Home › Garden › Tools\n\n# {t} no. {a}\n\nFree delivery within five working days on every order above thirty coins in the whole "
        "country.\n\nPrice: {b} coins\nStock: {c}\n\nThis item is sold and shipped by the garden tools company and its local partners.\n\n"
        "Customers who looked at this also looked at our spring offers and at the catalogue of last year.\n\nSend a question to our team"
    ),
    "https://weather.templates.example/town": (
        "Weather service › Towns\n\nThe temperature in {p} {a} today is {b} degrees and the wind blows with {c} knots from the west.\n\n"
        "The forecast is computed four times a day from the measurements of all stations in the country and may change at short notice.\n\n"
        "Last updated on {d} May by {n}\n\nAll rights reserved by the weather service and its partners; use of these data is free of charge"
    ),
    "https://club.templates.example/member": (
        "Chess club › Members › Profile\n\nMember: {n} {a}\nRating: {b}\nGames: {c}\n\nOnly members who have signed in can see the games "
        "of this member and send messages to them.\n\nThe club meets on every second Tuesday of the month in the back room of the old town "
        "library.\n\nReport this profile if you think that it breaks the rules of the club"
    ),
}


def templated(template: str, i: int, r: random.Random) -> str:
    """The i-th page of a template."""
    return template.format(
        t=r.choice(THINGS), p=r.choice(PLACES), n=r.choice(NAMES), a=i, b=r.randint(2, 900), c=r.randint(0, 99), d=r.randint(1, 31)
    )


def _luhn(body: str) -> str:
    digits = [int(c) * (2 - i % 2) for i, c in enumerate(body)]
    return str(-sum(d - 9 * (d > 9) for d in digits) % 10)


def _pick(r: random.Random, letters: str, count: int) -> str:
    return "".join(r.choice(letters) for _ in range(count))


def personal(r: random.Random) -> Iterator[tuple[str, str]]:
    """(kind, line) of one example of each kind."""
    name = r.choice(NAMES).lower()
    yield "email", f"Write to {name}{r.randint(1, 99)}@uni-{r.choice(['ulm.de', 'graz.at', 'turin.it'])}."
    yield "phone", f"Call +49 {r.randint(30, 89)} {r.randint(2000000, 9999999)} in the evening."
    yield "ip", f"The last login came from {r.randint(80, 95)}.{r.randint(16, 99)}.{r.randint(16, 250)}.{r.randint(3, 250)}, port 22."
    body = "4" + _pick(r, "0123456789", 14)
    yield "card", f"Paid with card {body}{_luhn(body)} on Monday."
    bank = _pick(r, "123456789", 18)
    yield "iban", f"Account DE{98 - int(bank + '131400') % 97:02d}{bank} was closed."
    yield "secret", "token: gh" + f"p_{_pick(r, 'abcdefghijkmnpqrstuvwxyzABCDEFGHJKLMNPQRSTUVWXYZ23456789', 36)}"


# ── the whole ─────────────────────────────────────────────────────────────────────────────────────────────────────


def inserted(text: str, block: str, r: random.Random) -> str:
    """The text with a block between two of its paragraphs."""
    parts = text.split("\n\n")
    at = r.randint(0, len(parts))
    return "\n\n".join([*parts[:at], block, *parts[at:]])


def plant(folder: Path, scale: float = 1.0, seed: int = 0) -> Truth:
    """Writes the corpus. At scale 1: 600 pages, of which 200 hold an item (of 600), 60 one with other numbers and 90 personal data; 500
    near copies of the others; 300 templated pages on three hosts."""

    def n(count: int) -> int:
        return max(3, round(count * scale))

    r = random.Random(seed)
    base = pages(n(600))
    urls, texts = [u for u, _ in base], [t for _, t in base]
    items = made_items(r, n(600))
    leaks, decoys, copies, pii = [], [], [], {}
    free = list(range(len(texts)))
    r.shuffle(free)
    for i, item in enumerate(r.sample(items, n(200))):
        how = HOW[i % 3] if item.benchmark != "tasks" else HOW[i % 2 * 2]
        block = whole(item) if how == "exact" else edited(whole(item), r) if how == "edited" else split(item, r)
        doc = free.pop()
        texts[doc] = inserted(texts[doc], block, r)
        leaks.append(Leak(doc, item.id, how))
    for item in r.sample([i for i in items if i.benchmark == "problems"], n(60)):
        doc = free.pop()
        texts[doc] = inserted(texts[doc], other_numbers(whole(item), r), r)
        decoys.append(doc)
    for _ in range(n(90)):
        doc = free.pop()
        lines = r.sample(list(personal(r)), r.randint(1, 3))
        for _, line in lines:
            texts[doc] = inserted(texts[doc], line, r)
        pii[doc] = tuple(kind for kind, _ in lines)
    for i in range(n(500)):
        of = free[i % len(free)]
        text, jaccard = copied(texts[of], r.uniform(*JACCARD), r)
        copies.append(Copy(len(texts), of, jaccard))
        texts.append(text)
        urls.append(f"https://copies.example/{i}")
    templates: dict[str, list[int]] = {}
    for host, template in TEMPLATES.items():
        for i in range(n(100)):
            templates.setdefault(host, []).append(len(texts))
            texts.append(templated(template, i, r))
            urls.append(f"{host}/{i}")
    corpus = Corpus.from_texts(folder, texts, "planted", urls=urls)
    return Truth(corpus, items, leaks, decoys, copies, templates, pii)


# ── measured ──────────────────────────────────────────────────────────────────────────────────────────────────────


def share(found: int, of: int) -> float:
    return found / of if of else float("nan")


def annotated(truth: Truth, folder: Path, step: Any) -> Corpus:
    made = Annotate(corpus=Input(stage="docs"), steps=(step,)).run(Context.scratch(folder, docs=truth.corpus, stock=truth.corpus))
    assert isinstance(made, Corpus)
    return made


def contaminated(truth: Truth, folder: Path, **fields: Any) -> dict[str, Any]:
    """Recall by way of planting, precision, and the flagged pages that nobody planted. A page is flagged if an item is exact or covered to
    the usual threshold; a leak counts as found if its own item is. item_precision: the share of (page, item) pairs that were planted; the
    others are items worded nearly like the planted one."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [{"id": i.id, "benchmark": i.benchmark, "question": i.question, "answer": i.answer, "choices": i.options} for i in truth.items]
    (folder / "items.json").write_text(json.dumps(rows))
    view = annotated(truth, folder, Overlap(sources=(Source(uri=str(folder / "items.json")),), **fields))
    found = [(h.doc, h.item, h.coverage) for h in contamination.hits(view)]
    hit = {(doc, item) for doc, item, _ in found}
    by = {how: [(x.doc, x.item) in hit for x in truth.leaks if x.how == how] for how in HOW}
    flagged, planted = {doc for doc, _, _ in found}, {x.doc for x in truth.leaks}
    wrong = [(doc, item, coverage, "decoy" if doc in truth.decoys else "natural") for doc, item, coverage in found if doc not in planted]
    missed = [x for x in truth.leaks if (x.doc, x.item) not in hit]
    right = {(x.doc, x.item) for x in truth.leaks}
    return {
        "recall": {how: share(sum(those), len(those)) for how, those in by.items()},
        "precision": share(len(flagged & planted), len(flagged)),
        "item_precision": share(len(hit & right), len(hit)),
        "flagged": len(flagged),
        "decoys_flagged": share(len(flagged & set(truth.decoys)), len(truth.decoys)),
        "wrong": wrong,
        "missed": missed,
    }


def deduplicated(truth: Truth, folder: Path) -> dict[str, Any]:
    """Recall of near copies (in one cluster with their original by `exact` and `minhash`), of templated pages (linked to another of their
    host by `skeleton`), and the share of edges that join what was planted as alike."""
    ctx = Context.scratch(folder, docs=truth.corpus)
    view = Dedup(corpus=Input(stage="docs"), links=(Exact(), MinHash(), Skeleton())).run(ctx)
    assert isinstance(view, Corpus)
    docs = {doc: i for i, doc in enumerate(truth.corpus.docs().tolist())}
    group = {c.doc: c.of for c in truth.copies} | {d: -1 - i for i, ds in enumerate(truth.templates.values()) for d in ds}
    edges = [(docs[e["a"]], docs[e["b"]], e["similarity"], e["kind"]) for e in view.edges().to_pylist()]
    near = [e for e in edges if e[3] in ("exact", "minhash")]
    parent = {d: d for d in docs.values()}

    def root(x: int) -> int:
        while parent[x] != x:
            x = parent[x]
        return x

    for a, b, _, _ in near:
        parent[max(root(a), root(b))] = min(root(a), root(b))
    wrong = [e for e in edges if group.get(e[0], e[0]) != group.get(e[1], e[1])]
    linked = {d for a, b, _, kind in edges if kind == "skeleton" for d in (a, b)}
    alike = [c for c in truth.copies if c.jaccard >= JACCARD[0]]
    pages_of = [d for ds in truth.templates.values() for d in ds]
    return {
        "recall": share(sum(root(c.doc) == root(c.of) for c in alike), len(alike)),
        "copies": len(alike),
        "edges": len(near),
        "precision": share(len(near) - sum(e[3] != "skeleton" for e in wrong), len(near)),
        "template_recall": share(sum(d in linked for d in pages_of), len(pages_of)),
        "template_recall_by_host": {host: share(sum(d in linked for d in ds), len(ds)) for host, ds in truth.templates.items()},
        "template_precision": share(len(linked & set(pages_of)), len(linked)),
        "wrong": wrong,
    }


def personal_data(truth: Truth, folder: Path) -> dict[str, Any]:
    """Recall by planted kind; precision: the share of pages with a hit in which one was planted."""
    from upslope.data.annotators.pii import Pii

    view = annotated(truth, folder, Pii())
    rows = [row for batch in view.batches(("pii",)) for row in batch["pii"].to_pylist()]
    base = len(truth.corpus) - len(truth.copies) - sum(map(len, truth.templates.values()))
    wanted = [(doc, kind) for doc, kinds in truth.pii.items() for kind in kinds]
    flagged = {doc for doc in range(base) if rows[doc]["total"]}
    return {
        "recall": share(sum(rows[doc][kind] > 0 for doc, kind in wanted), len(wanted)),
        "lines": len(wanted),
        "precision": share(len(flagged & set(truth.pii)), len(flagged)),
        "missed": [(doc, kind) for doc, kind in wanted if not rows[doc][kind]],
        "natural": [(doc, {k: v for k, v in rows[doc].items() if v}) for doc in sorted(flagged - set(truth.pii))],
    }
