"""hazard: cues of text on self-harm, weapons, mass destruction, drugs, of adult and of hateful text, and hosts on a blocklist.

A list of terms is triage, not a verdict: it finds a newspaper's report and a clinic's advice as well as what it is for, misses what
is said in other words, and knows English only. Use it to choose what a reader or a classifier looks at, with a limit on the rate and one on
`hits`; on its own it would take more good text than bad. False positives measured: 0 of 1,918 documentation pages (13 before the
placeholder `xxx` left the list), 1 of 34 everyday sentences with words such as `kill`, `bomb` or `escort`; recall was not measured, for
want of such text.

    rate(category) = 1,000 · Σ weights of the phrases found / words of the prose

Source: the lists in `assets/hazard.json`, which says where they come from; C4 (Raffel et al. 2020, section 2.2) drops pages by such a
list, and Dodge et al. 2021 (arXiv 2104.08758), section 5, show whom that hits.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar
from urllib.parse import urlsplit

from upslope.config import Source, UsageError
from upslope.data.protocol import Annotate
from upslope.machine.files import digest_file, read_json

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray

CATEGORIES = ("self_harm", "weapons", "cbrn", "drugs", "adult", "hate", "profanity")
LONGEST = 4


class Hazard(Annotate):
    """Rates by category; score: the largest of them, profanity aside; hits: how many phrases were found. NULL without words.
    blocked: whether the page's host, or a domain above it, is on a blocklist; NULL without a host.

    terms: a JSON file like the one shipped. hosts: domains to block; lists: files of them, one a line (hosts files are understood too).
    """

    kind: ClassVar[str] = "hazard"
    version: ClassVar[int] = 1
    gives: ClassVar[Mapping[str, str]] = {**dict.fromkeys((*CATEGORIES, "score"), "float32"), "hits": "int32", "blocked": "bool"}

    terms: Source = Source(uri="package:hazard.json")
    hosts: tuple[str, ...] = ()
    lists: tuple[Source, ...] = ()

    def __call__(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Needs the columns url, text and spans."""
        import numpy as np

        from upslope.data import prose

        path = self.terms.path()
        keys, group, weight = read_terms(path, self.terms.digest or digest_file(path))
        found = prose.phrases(*prose.prose_of(batch), keys, group, weight, len(CATEGORIES), LONGEST)
        words, hits = found[:, -1:], found[:, -2:-1]
        with np.errstate(invalid="ignore"):
            rates = np.where(words > 0, 1000 * found[:, :-2] / words, np.nan)
        bad = frozenset(host.lower().strip(".") for host in self.hosts).union(*(_hosts(source) for source in self.lists))
        blocked = np.array([[_blocked(url or "", bad)] for url in batch["url"].to_pylist()], np.float64).reshape(-1, 1)
        score = rates[:, :-1].max(1, keepdims=True) if len(rates) else rates[:, :1]
        return prose.frame(self.gives, np.hstack([rates, score, np.where(words > 0, hits, np.nan), blocked]))


def _hosts(source: Source) -> frozenset[str]:
    path = source.path()
    return read_hosts(path, source.digest or digest_file(path))


@lru_cache(maxsize=4)
def read_terms(path: Path, digest: str) -> tuple[NDArray[np.uint64], NDArray[np.int32], NDArray[np.float64]]:
    """(sorted hashes, category of each, weight of each) of a file of terms. UsageError where it is not one."""
    import numpy as np

    from upslope.data import prose

    try:
        data = read_json(path)
        rows = [
            (prose.fnv(" ".join(re.findall(r"\w+", phrase.lower())).encode()), CATEGORIES.index(name), float(weight))
            for name, phrases in data["terms"].items()
            for phrase, weight in phrases.items()
        ]
        rows += [(int(key, 16), CATEGORIES.index(name), 1.0) for name, keys in data["hashes"].items() for key in keys]
    except (KeyError, ValueError, TypeError, AttributeError) as e:
        raise UsageError(
            f"{path.name}: not a file of terms ({e})\n"
            f'way out: {{"terms": {{CATEGORY: {{PHRASE: WEIGHT}}}}, "hashes": {{CATEGORY: [HEX]}}}}; categories: {", ".join(CATEGORIES)}'
        ) from None
    unique = {key: (category, weight) for key, category, weight in reversed(rows)}
    keys = sorted(unique)
    groups, weights = [unique[k][0] for k in keys], [unique[k][1] for k in keys]
    return np.array(keys, np.uint64), np.array(groups, np.int32), np.array(weights, np.float64)


@lru_cache(maxsize=16)
def read_hosts(path: Path, digest: str) -> frozenset[str]:
    """The domains of a list: the last word of each line, without comments. UsageError naming a line that holds no domain."""
    out = set()
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        host = words[-1].lower().strip("|^.")
        if not re.fullmatch(r"[\w-]+(?:\.[\w-]+)*", host):
            raise UsageError(f"{path.name}: line {number}: {line[:80]!r} holds no domain\nway out: one domain a line, `# …` for comments")
        out.add(host)
    return frozenset(out)


def _blocked(url: str, bad: frozenset[str]) -> float:
    """1 where the host of a URL, or a domain above it, is in the set; 0 where not; NaN without a host."""
    try:
        host = (urlsplit(url).hostname or "").strip(".")
    except ValueError:
        host = ""
    labels = host.split(".")
    return float(any(".".join(labels[i:]) in bad for i in range(len(labels)))) if host else float("nan")
