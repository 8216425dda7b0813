"""web: your pages → a curated corpus and token shards, with every drop explained.

Cheap judgements first, then a decision, then copies among what is left, then the evaluation items, then the last decision. Thresholds are
those of Gopher, C4, FineWeb and OLMo 2 (facts and sources in `data.annotators`).
"""

from __future__ import annotations

from upslope.config import FrozenDict, Input, Source, UsageError
from upslope.data.annotators.c4 import C4
from upslope.data.annotators.fineweb import FineWeb
from upslope.data.annotators.gopher import Gopher
from upslope.data.annotators.langid import LangId
from upslope.data.annotators.overlap import Overlap
from upslope.data.annotators.pii import Pii
from upslope.data.annotators.repeats import Repeats
from upslope.data.annotators.repetition import Repetition
from upslope.data.links import Exact, MinHash, Skeleton
from upslope.data.protocol import Rule
from upslope.data.readers import ReadFile
from upslope.machine.stage import Recipe, Stage
from upslope.stages.annotate import Annotate
from upslope.stages.curate import Curate
from upslope.stages.dedup import Dedup
from upslope.stages.extract import Extract
from upslope.stages.ingest import Ingest
from upslope.stages.tokenize import Tokenize
from upslope.stages.tokenizer import TrainTokenizer

UNSPACED = "gopher.unspaced > 0.3"
"""Thresholds on n-grams of words and on the length of lines were set for spaced scripts. On the big crawl one of them alone took 54 % of
the Japanese pages and another 56 % of the Chinese ones (`docs/data.md`), so they do not apply where a third of the letters are unspaced."""

QUALITY = (
    Rule(name="not empty", keep="bytes > 0"),
    Rule(name="words", keep="coalesce(gopher.words, gopher.units) between 50 and 100000"),
    Rule(name="word length", keep="gopher.mean_word_length between 3 and 10"),
    Rule(name="symbols", keep="gopher.symbol_ratio <= 0.1"),
    Rule(name="bullets", keep="gopher.bullet_lines <= 0.9"),
    Rule(name="ellipses", keep="gopher.ellipsis_lines <= 0.3"),
    Rule(name="letters", keep="gopher.alpha_words >= 0.8"),
    Rule(name="stop words", keep="langid.lang <> 'en' or gopher.stop_words >= 2"),
    Rule(name="repeated lines", keep="repetition.line_dup <= 0.3 and repetition.line_dup_bytes <= 0.2"),
    Rule(name="repeated paragraphs", keep="repetition.para_dup <= 0.3 and repetition.para_dup_bytes <= 0.2"),
    Rule(name="frequent n-grams", keep=f"{UNSPACED} or repetition.top_2 <= 0.2 and repetition.top_3 <= 0.18 and repetition.top_4 <= 0.16"),
    Rule(
        name="repeated n-grams",
        keep=f"{UNSPACED} or repetition.dup_5 <= 0.15 and repetition.dup_6 <= 0.14 and repetition.dup_7 <= 0.13"
        " and repetition.dup_8 <= 0.12 and repetition.dup_9 <= 0.11 and repetition.dup_10 <= 0.1",
    ),
    Rule(name="loops", keep="repeats.repeats < 32"),
    Rule(name="lorem ipsum", keep="not c4.lorem_ipsum"),
    Rule(name="line ends", keep="fineweb.line_punct >= 0.12"),
    Rule(name="short lines", keep=f"{UNSPACED} or fineweb.short_lines <= 0.67"),
    Rule(name="duplicate lines", keep="fineweb.dup_line_bytes <= 0.1"),
    Rule(name="newlines", keep="fineweb.newline_ratio <= 0.3"),
)
"""The rules of the first decision, over prose only: code, formulas and tables are not looked at."""


def web(
    data: str = "package:crawl.warc.gz", map: str = "", benchmarks: str = "package:planted.json", vocab: int = 32768, seed: int = 0
) -> Recipe:
    """Your pages (WARC, HTML, JSONL, parquet, …) → a curated, deduplicated, decontaminated corpus and token shards.

    data: files or folders, separated by commas. map: ours=theirs fields of JSON and parquet, separated by commas. benchmarks: JSON files of
    evaluation items to keep out, separated by commas. vocab: size of the tokenizer that is trained.
    """
    pairs = [entry.partition("=") for entry in map.split(",") if entry]
    for left, eq, right in pairs:
        if not (left and eq and right):
            raise UsageError(f"--map {map!r}: wanted OURS=THEIRS, e.g. text=body, separated by commas")
    stages: dict[str, Stage] = {
        "pages": Ingest(
            sources=tuple(Source(uri=path) for path in data.split(",")), read=ReadFile(map=FrozenDict({a: b for a, _, b in pairs}))
        ),
        "text": Extract(pages=Input(stage="pages")),
        "labels": Annotate(corpus=Input(stage="text"), steps=(LangId(), Gopher(), Repetition(), Repeats(), C4(), FineWeb(), Pii())),
        "quality": Curate(corpus=Input(stage="labels"), rules=QUALITY),
        "copies": Dedup(corpus=Input(stage="quality"), links=(Exact(), MinHash(), Skeleton())),
        "leaks": Annotate(
            corpus=Input(stage="copies"), steps=(Overlap(sources=tuple(Source(uri=path) for path in benchmarks.split(","))),), living=True
        ),
        "corpus": Curate(
            corpus=Input(stage="leaks"),
            rules=(Rule(name="evaluation items", keep="not overlap.exact and overlap.coverage < 0.4"),),
            winner="bytes desc, date desc, doc",
        ),
        "tokenizer": TrainTokenizer(corpora=(Input(stage="corpus"),), vocab_size=vocab, sample_bytes=20_000_000, words="code"),
        "shards": Tokenize(tokenizer=Input(stage="tokenizer"), corpora=(Input(stage="corpus"),)),
    }
    return Recipe(name="web", seed=seed, stages=FrozenDict(stages))
