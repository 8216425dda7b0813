"""origin: what the URL and the date of a page say about evaluations: copies of benchmarks by host and repository, and pages written after
a benchmark came out. Nothing is dropped; a rule may be `not origin.mirror` or `not (origin.late and overlap.coverage > 0.2)`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import date
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import TYPE_CHECKING, Annotated, ClassVar
from urllib.parse import unquote, urlsplit

from pydantic import AfterValidator

from upslope.data.protocol import Annotate

if TYPE_CHECKING:
    import pyarrow as pa

MIRRORS = (
    "huggingface.co/datasets/*",
    "hf-mirror.com/datasets/*",
    "huggingface.co/spaces/*leaderboard*",
    "datasets-server.huggingface.co/*",
    "kaggle.com/datasets/*",
    "modelscope.cn/datasets/*",
    "paperswithcode.com/dataset/*",
    "paperswithcode.com/sota/*",
)
"""Hubs of data sets, where most benchmarks lie in full, and leaderboards that show their items."""

REPOS = (
    "*/*-eval", "*/*-evals", "*/*-bench", "*/evals", "*/human-eval*", "*/evalplus*", "*/mbpp*", "*/grade-school-math*", "*/gsm8k*",
    "*/gpqa*", "*/mmlu*", "*/hellaswag*", "*/agieval*", "*/ceval*", "*/bbeh*", "*/big-bench*", "*/truthfulqa*", "*/livecodebench*",
    "*/*lm-evaluation-harness*", "*/lighteval*", "*/opencompass*", "*/helm", "*/natural-instructions*", "hendrycks/*",
)  # fmt: skip
"""Repositories of benchmarks and evaluation harnesses, by whatever owner: forks have the same name."""

HUBS = {
    "github.com": 0, "raw.githubusercontent.com": 0, "gist.github.com": 0, "codeload.github.com": 0, "cdn.jsdelivr.net": 1,
    "gitlab.com": 0, "bitbucket.org": 0, "codeberg.org": 0, "gitee.com": 0,
}  # fmt: skip
"""Hosts of repositories, and the number of path parts before OWNER/NAME."""

INNER = re.compile(r"(?<=.)https?:/{1,2}", re.I)
FIRST, LAST = date(1991, 8, 6), date(2049, 12, 31)
"""Dates before the first web page and far ahead are mistakes."""


def _iso(value: str) -> str:
    if value and day(value) is None:
        raise ValueError(f"{value!r} is not a date between {FIRST} and {LAST}; write e.g. '2023-09-01'")
    return value


class Origin(Annotate):
    """host: without `www.` and port; repo: OWNER/NAME of a page of a code host; mirror: whether host and path match one of `mirrors`, or
    the repository one of `repos` (both with * and ?, in lower case); late: whether the page's date is after `after`.

    All but `late` are NULL where the URL names no host; `late` is NULL without a (plausible) date or `after`. The page inside an archive's
    or a proxy's URL (`…/https://…`) is what counts.
    """

    kind: ClassVar[str] = "origin"
    gives: ClassVar[Mapping[str, str]] = {"host": "string", "repo": "string", "mirror": "bool", "late": "bool"}

    mirrors: tuple[str, ...] = MIRRORS
    repos: tuple[str, ...] = REPOS
    after: Annotated[str, AfterValidator(_iso)] = ""

    def __call__(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Needs the columns url and date."""
        import pyarrow as pa

        after = day(self.after)
        columns: dict[str, list[str | bool | None]] = {name: [] for name in self.gives}
        for url, written in zip(batch["url"].to_pylist(), batch["date"].to_pylist()):
            host, path = place(url or "")
            repo = repository(host, path)
            mirror = _matches(f"{host}{path}".lower(), self.mirrors) or (bool(repo) and _matches(repo.lower(), self.repos))
            when = day(written or "")
            late = None if after is None or when is None else when > after
            for name, value in zip(self.gives, (host or None, repo or None, mirror if host else None, late)):
                columns[name].append(value)
        return pa.RecordBatch.from_pydict({n: pa.array(columns[n], pa.type_for_alias(t)) for n, t in self.gives.items()})


@lru_cache(maxsize=65536)
def place(url: str) -> tuple[str, str]:
    """(host, path) of a URL, of the inner one where an archive or proxy wraps it; ("", "") where there is no host."""
    inner = list(INNER.finditer(unquote(url)))
    if inner:
        url = unquote(url)[inner[-1].start() :]
    try:
        parts = urlsplit(url if "://" in url else re.sub(r"^(https?):/+", r"\1://", url, flags=re.I))
        host = (parts.hostname or "").removeprefix("www.").rstrip(".")
    except ValueError:
        return "", ""
    return host, parts.path if host else ""


def repository(host: str, path: str) -> str:
    """OWNER/NAME that a page belongs to, "" for none."""
    skip = HUBS.get(host)
    parts = [p for p in path.split("/") if p]
    if skip is None or len(parts) < skip + 2:
        return ""
    return f"{parts[skip]}/{parts[skip + 1].removesuffix('.git').partition('@')[0]}"


def day(text: str) -> date | None:
    """The day of an ISO 8601 date or time; None where there is none, or none that can be."""
    try:
        found = date.fromisoformat(text[:10])
    except ValueError:
        return None
    return found if FIRST <= found <= LAST else None


def _matches(text: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(text, p) for p in patterns)
