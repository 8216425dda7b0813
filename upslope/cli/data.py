"""The verbs of `upslope data`: run, check, funnel, what-if, sample, lineage, contamination, prove, export, score-extraction."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from upslope.cli.options import DEFAULT_STORE, JsonOption, StoreOption, open_store
from upslope.cli.tables import emit

data_app = typer.Typer(
    help="Data: run, check, funnel, what-if, sample, lineage, contamination, prove, export, score-extraction.",
    rich_markup_mode=None,
    no_args_is_help=True,
)
CorpusArgument = Annotated[
    str | None, typer.Argument(metavar="[CORPUS]", help="A run, RUN/STAGE, or a corpus folder; default: the newest run.")
]


def _answer(answer: tuple[str, Any], json_: bool) -> None:
    emit(answer[1]) if json_ else print(answer[0])


@data_app.command("run")
def data_run(
    sources: Annotated[list[Path], typer.Argument(help="Files or folders: WARC, HTML, text, JSONL, parquet, Arrow, Dolma.")],
    store: StoreOption = DEFAULT_STORE,
    set_: Annotated[list[str] | None, typer.Option("--set", metavar="PATH=VALUE", help="Override a value of the recipe `web`.")] = None,
    map_: Annotated[list[str] | None, typer.Option("--map", metavar="OURS=THEIRS", help="Where a field is, e.g. text=body.")] = None,
    to: Annotated[list[str] | None, typer.Option("--to", help="Stop after these stages (names or globs).")] = None,
    workers: Annotated[int | None, typer.Option("--workers", min=1, help="Processes; default: the cores.")] = None,
    engine: Annotated[str, typer.Option("--engine", help="local, ray[:ADDRESS], slurm[:COMMAND].")] = "local",
    json_: JsonOption = False,
) -> None:
    """Pages to a curated corpus: the recipe `web` on your files."""
    from upslope.cli.running import run_draft
    from upslope.config import UsageError
    from upslope.recipes.load import load

    for source in sources:
        if not source.exists():
            raise UsageError(f"no such file or folder: {str(source)!r}")
        if "," in str(source):
            raise UsageError(f"{str(source)!r}: a comma parts two sources here\nway out: name its folder, or write a recipe file")
    draft = load("web", set_ or [], data=",".join(map(str, sources)), map=",".join(map_ or []))
    run_draft(draft, store, to=tuple(to or ()), workers=workers, engine=engine, json_=json_)


@data_app.command("check")
def data_check(
    file: Annotated[Path, typer.Argument(help="A file, or a folder that another tool wrote.")],
    map_: Annotated[list[str] | None, typer.Option("--map", metavar="OURS=THEIRS", help="Where a field is, e.g. text=body.")] = None,
    json_: JsonOption = False,
) -> None:
    """What shape a file has, how its fields map, three rows, bad rows by line."""
    from upslope.data.check import check, mapping

    shape = check(file, mapping(map_ or []))
    emit(shape.json()) if json_ else print(shape.render())


@data_app.command("funnel")
def data_funnel(
    corpus: CorpusArgument = None,
    by: Annotated[str, typer.Option("--by", help="language, kind (prose, code, math, table) or source.")] = "",
    store: StoreOption = DEFAULT_STORE,
    json_: JsonOption = False,
) -> None:
    """How many pages were left after each step, and what each rule took, alone or not."""
    from upslope.cli.corpora import funnel

    _answer(funnel(corpus, open_store(store), by), json_)


@data_app.command("what-if")
def data_what_if(
    corpus: CorpusArgument = None,
    rule: Annotated[list[str] | None, typer.Option("--rule", metavar="NAME=PREDICATE", help="Replace or add a rule.")] = None,
    without: Annotated[list[str] | None, typer.Option("--without", metavar="NAME", help="Leave a rule out.")] = None,
    winner: Annotated[str | None, typer.Option("--winner", help="Another order among copies.")] = None,
    store: StoreOption = DEFAULT_STORE,
    json_: JsonOption = False,
) -> None:
    """The newest decision with other rules: documents gained and lost, by language, kind and source. Writes nothing."""
    from upslope.cli.corpora import what_if

    _answer(what_if(corpus, open_store(store), rule or [], without or [], winner), json_)


@data_app.command("sample")
def data_sample(
    corpus: CorpusArgument = None,
    count: Annotated[int, typer.Option("-n", "--count", min=1)] = 5,
    rule: Annotated[str | None, typer.Option("--rule", help="Victims of this rule instead of kept documents.")] = None,
    source: Annotated[str | None, typer.Option("--source", help="Only of this source.")] = None,
    seed: Annotated[int, typer.Option("--seed")] = 0,
    store: StoreOption = DEFAULT_STORE,
    json_: JsonOption = False,
) -> None:
    """Documents drawn at random: kept ones, or those that a rule took."""
    from upslope.cli.corpora import sample

    _answer(sample(corpus, open_store(store), count, rule, source, seed), json_)


@data_app.command("lineage")
def data_lineage(
    place: Annotated[str, typer.Argument(metavar="STAGE:STEP[:ROW]", help="A batch of a pretrain stage, e.g. pretrain:120:3.")],
    run: Annotated[str | None, typer.Option("--run", help="Default: the newest run.")] = None,
    store: StoreOption = DEFAULT_STORE,
    json_: JsonOption = False,
) -> None:
    """Where the tokens of a training batch came from: document, URL, licence, record in the archive."""
    from upslope.cli.corpora import lineage

    _answer(lineage(run, place, open_store(store)), json_)


@data_app.command("contamination")
def data_contamination(
    corpus: CorpusArgument = None,
    threshold: Annotated[float, typer.Option("--threshold", help="Coverage from which on an item counts as found.")] = 0.4,
    store: StoreOption = DEFAULT_STORE,
    json_: JsonOption = False,
) -> None:
    """Which benchmarks stand in which sources: items found, documents that hold them, kept or not."""
    from upslope.cli.corpora import contamination

    _answer(contamination(corpus, open_store(store), threshold), json_)


@data_app.command("prove")
def data_prove(corpus: CorpusArgument = None, store: StoreOption = DEFAULT_STORE, json_: JsonOption = False) -> None:
    """That nothing in a corpus was written by a model: provenance of every row, certificates of every span. Exit code 3 if not."""
    from upslope.cli.corpora import prove

    answer, holds = prove(corpus, open_store(store))
    _answer(answer, json_)
    if not holds:
        raise typer.Exit(3)


@data_app.command("export")
def data_export(
    folder: Annotated[Path, typer.Argument(help="Where the files go.")],
    corpus: Annotated[str | None, typer.Option("--corpus", help="A run, RUN/STAGE, or a corpus folder; default: the newest run.")] = None,
    form: Annotated[str, typer.Option("--format", help="dolma (JSONL documents) or megatron (.bin/.idx of the token shards).")] = "dolma",
    store: StoreOption = DEFAULT_STORE,
    json_: JsonOption = False,
) -> None:
    """A corpus or token shards as the files that other trainers read."""
    from upslope.cli.corpora import export

    _answer(export(corpus, folder, form, open_store(store)), json_)


@data_app.command("score-extraction")
def data_score(
    folder: Annotated[Path, typer.Argument(help="ground-truth.json (id → articleBody, url) and html/ID.html[.gz].")],
    extractor: Annotated[str, typer.Option("--extractor", help="upslope, resiliparse or trafilatura.")] = "upslope",
    json_: JsonOption = False,
) -> None:
    """How well main content is found on pages with gold: macro F1 of 4-word shingles."""
    from upslope.data.extract.score import extractors, score_folder

    score = score_folder(folder, extractors()[extractor])
    emit(score.to_json()) if json_ else print(score.render())
