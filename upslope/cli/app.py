"""The verbs of the command line."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from upslope.cli import stopping
from upslope.cli.data import data_app
from upslope.cli.options import DEFAULT_STORE, JsonOption, StoreOption, open_store
from upslope.cli.running import parse_budget, run_draft, write_report
from upslope.cli.tables import emit, size, table
from upslope.config import FrozenDict, UsageError, dump

if TYPE_CHECKING:
    from upslope.machine.graph import Graph
    from upslope.machine.store import Store
    from upslope.recipes.overrides import Draft

app = typer.Typer(
    name="upslope",
    no_args_is_help=False,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Train a language model the way the published frontier recipes do, and find out which changes are worth keeping.",
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(data_app, name="data")
stopping.register(app)

SetOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="PATH=VALUE", help="Override a value, e.g. pretrain.optim.lr=0.01 or 'eval_*.seed=1'.")
]
RecipeArgument = Annotated[str, typer.Argument(help="A preset (see `presets`) or a .toml file.")]
ModelParam = Annotated[str | None, typer.Option("--model", help="finetune: HF folder or run name to start from.")]
DataParam = Annotated[str | None, typer.Option("--data", help="finetune: your chats (JSONL).")]
RewardParam = Annotated[str | None, typer.Option("--reward", help="finetune: your scoring function, file.py:name.")]
SizeParam = Annotated[str | None, typer.Option("--size", help="A lab's preset at this size: tiny, 1M, 10M, ...")]
SeedParam = Annotated[int | None, typer.Option("--seed", help="Seed of the whole recipe.")]


def _draft(recipe: str, sets: list[str] | None, place: Path, seed: int | None = None, **params: str | None) -> Draft:
    from upslope.recipes.load import load, parameters

    model = params.get("model")
    if model and not Path(model).exists() and "model" in parameters(recipe):  # a run's model, by name
        from upslope.cli.models import find_model

        params["model"] = str(find_model(model, open_store(place)).folder)
    assigned = [*(sets or []), *([f"seed={seed}"] if seed is not None else [])]
    return load(recipe, assigned, **{k: v for k, v in params.items() if v is not None})


def _graph(draft: Draft, store: Store) -> Graph:
    from upslope.machine.graph import resolve
    from upslope.machine.run import source_digests

    return resolve(draft.recipe, source_digests(store))


def _version(wanted: bool) -> None:
    if wanted:
        from upslope import __version__

        print(__version__)
        raise typer.Exit


@app.callback(invoke_without_command=True)
def _home(
    ctx: typer.Context,
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")] = False,
) -> None:
    if ctx.invoked_subcommand is not None:
        return
    print(
        "upslope: train a language model the way the published frontier recipes do\n\n"
        "  upslope run              run or resume a recipe (tiny: raw pages to a released model, minutes on 2 cores)\n"
        "  upslope plan             what would be built and reused, and the price\n"
        "  upslope chat             talk to the model\n"
        "  upslope show             the newest run; --open writes its report\n"
        "  upslope why X            why a stage is built, or a page was dropped\n"
        "  upslope compare A B      two recipes or two runs\n"
        "  upslope export RUN DIR   weights that open in transformers\n"
        "  upslope presets          recipes that come with it\n\n"
        "  upslope --help           all verbs\n"
    )
    store = open_store(DEFAULT_STORE)
    names = store.runs() if store.root.is_dir() else []
    if names:
        record = store.record(names[-1])
        done = sum(s.state == "sealed" for s in record.stages)
        print(f"newest run: {record.name}, {done} of {len(record.stages)} stages done")


@app.command()
def run(
    recipe: RecipeArgument = "tiny",
    store: StoreOption = DEFAULT_STORE,
    set_: SetOption = None,
    seed: SeedParam = None,
    to: Annotated[list[str] | None, typer.Option("--to", help="Stop after these stages (names or globs).")] = None,
    rebuild: Annotated[list[str] | None, typer.Option("--rebuild", help="Set these stages' artifacts aside and make them anew.")] = None,
    inline: Annotated[bool, typer.Option("--inline", help="All stages in this process, for debuggers.")] = False,
    jobs: Annotated[int, typer.Option("--jobs", min=1, help="Stages at a time.")] = 1,
    workers: Annotated[int | None, typer.Option("--workers", min=1, help="Processes for data stages; default: the cores.")] = None,
    engine: Annotated[str, typer.Option("--engine", help="Where data stages run: local, ray[:ADDRESS], slurm[:COMMAND].")] = "local",
    launcher: Annotated[str, typer.Option("--launcher", help="Who starts stages with several ranks: local, torchrun[ OPTIONS].")] = "local",
    budget: Annotated[str | None, typer.Option("--budget", help="Hard cap on time (90s, 5m, 2h): then save and pause.")] = None,
    size: SizeParam = None,
    model: ModelParam = None,
    data: DataParam = None,
    reward: RewardParam = None,
    json_: JsonOption = False,
) -> None:
    """Run or resume a recipe."""
    run_draft(
        _draft(recipe, set_, store, seed, size=size, model=model, data=data, reward=reward),
        store,
        to=tuple(to or ()),
        rebuild=tuple(rebuild or ()),
        inline=inline,
        jobs=jobs,
        workers=workers,
        engine=engine,
        budget=parse_budget(budget),
        launch=launcher,
        json_=json_,
    )


@app.command()
def plan(
    recipe: RecipeArgument = "tiny",
    store: StoreOption = DEFAULT_STORE,
    set_: SetOption = None,
    seed: SeedParam = None,
    origins: Annotated[bool, typer.Option("--origins", help="Every value with where it comes from.")] = False,
    size: SizeParam = None,
    model: ModelParam = None,
    data: DataParam = None,
    reward: RewardParam = None,
    ranks: Annotated[int | None, typer.Option("--ranks", help="Rehearse a stage on so many accelerators; nothing runs.")] = None,
    mesh: Annotated[str | None, typer.Option("--mesh", help="With --ranks: 'dp 2, tp 8'; else one is suggested.")] = None,
    machine_: Annotated[str | None, typer.Option("--machine", help="With --ranks: h100x8, ... or a file.")] = None,
    stage: Annotated[str | None, typer.Option("--stage", help="With --ranks: which stage; the first that trains by default.")] = None,
    job: Annotated[str | None, typer.Option("--job", help="With --ranks: 'batch 512x8192, recompute full, micro 2'.")] = None,
    published: Annotated[bool, typer.Option("--published", help="Published runs beside what is predicted for them.")] = False,
    machine_template: Annotated[bool, typer.Option("--machine-template", help="A machine file with every field and its unit.")] = False,
    json_: JsonOption = False,
) -> None:
    """What would be built, continued and reused, and what is known of its price; with --ranks, a cluster's run rehearsed."""
    if published or machine_template:
        from upslope.cli.rehearse import show_published, show_template

        return show_template() if machine_template else show_published(json_)
    if ranks is not None:
        from upslope.cli.rehearse import is_lab, show

        named = is_lab(recipe) and size is None and not set_
        subject = recipe if named else _draft(recipe, set_, store, seed, size=size, model=model, data=data, reward=reward).recipe
        return show(subject, ranks, mesh, machine_, stage, job, json_)
    for option, given in (("--mesh", mesh), ("--machine", machine_), ("--stage", stage), ("--job", job)):
        if given is not None:
            raise UsageError(f"{option} {given!r}: belongs to a rehearsal\nway out: --ranks N with it")
    from upslope.cli.presets import flatten
    from upslope.cli.prices import lines as prices
    from upslope.cli.watch import seconds
    from upslope.machine import run as machine

    draft = _draft(recipe, set_, store, seed, size=size, model=model, data=data, reward=reward)
    place = open_store(store)
    graph = _graph(draft, place)
    steps = machine.plan(graph, place)
    if json_:
        emit(
            {
                "recipe": draft.recipe.name,
                "seed": draft.recipe.seed,
                "origins": dict(draft.origins),
                "notes": list(draft.notes),
                "stages": [
                    {
                        "name": s.node.name,
                        "kind": s.node.kind,
                        "fp": s.node.fp,
                        "state": s.state,
                        "reads": list(s.node.reads),
                        "cost": s.cost._asdict(),
                    }
                    for s in steps
                ],
            }
        )
        return
    if origins:
        rows = []
        for path, value in flatten(dump(draft.recipe)["stages"]):
            matching = [o for o in draft.origins if o == path or path.startswith(o + ".")]
            rows.append(
                (
                    path,
                    json.dumps(value, ensure_ascii=False),
                    draft.origins[max(matching, key=len)] if matching else draft.origins.get("", ""),
                )
            )
        print(table(rows, ("value", "", "from")))
        return
    lines = [
        (
            s.node.name,
            s.node.kind,
            s.state,
            seconds(s.cost.seconds) if s.cost.seconds else "",
            f"{s.cost.flops:.1e}" if s.cost.flops else "",
            ", ".join(s.node.reads),
        )
        for s in steps
    ]
    print(table(lines, ("stage", "kind", "", "about", "flops", "reads"), right=(3, 4)))
    counts = {state: sum(s.state == state for s in steps) for state in ("reuse", "resume", "build")}
    total = sum(s.cost.seconds for s in steps if s.state != "reuse")
    print(
        f"\n{counts['build']} to build, {counts['resume']} to continue, {counts['reuse']} reused"
        + (f"; about {seconds(total)} here" if total else "")
    )
    for line in prices(steps, place):
        print(line)


@app.command()
def ls(store: StoreOption = DEFAULT_STORE, json_: JsonOption = False) -> None:
    """Runs, newest first."""
    place = open_store(store)
    rows = []
    for name in reversed(place.runs()):
        record = place.record(name)
        states = [s.state for s in record.stages]
        took = sum(s.manifest["seconds"] for s in record.stages if s.manifest)
        held = sum(s.manifest["bytes"] for s in record.stages if s.manifest)
        state = (
            "done"
            if all(s == "sealed" for s in states)
            else "running"
            if "running" in states
            else "failed"
            if "failed" in states
            else "partial"
        )
        rows.append((name, state, f"{states.count('sealed')}/{len(states)}", f"{took:.0f} s", size(held), record.started))
    if json_:
        emit([dict(zip(("run", "state", "stages", "seconds", "bytes", "created"), r)) for r in rows])
    else:
        print(table(rows, ("run", "state", "stages", "time", "disk", "created"), right=(2, 3, 4)) if rows else "no runs yet: `upslope run`")


@app.command()
def show(
    run_: Annotated[str | None, typer.Argument(metavar="[RUN]", help="Run name; the newest by default.")] = None,
    store: StoreOption = DEFAULT_STORE,
    open_: Annotated[bool, typer.Option("--open", help="Write report.html and say where it is.")] = False,
    samples: Annotated[str | None, typer.Option("--samples", help="best, worst or changed answers of an rl stage.")] = None,
    errors: Annotated[bool, typer.Option("--errors", help="Failures with their traces.")] = False,
    json_: JsonOption = False,
) -> None:
    """State and results of a run."""
    from dataclasses import asdict

    from upslope.machine.run import record
    from upslope.report.text import summary

    place = open_store(store)
    seen = record(place, run_)
    if samples:
        from upslope.cli.look import rollouts

        print(rollouts(seen, samples))
    elif errors:
        for stage in seen.stages:
            for row in stage.events:
                if row["kind"] == "end" and row.get("error"):
                    print(f"{stage.name}: {row['error']}\n{row.get('details', '')}")
    elif json_:
        body = asdict(seen)
        for stage_body in body["stages"]:
            del stage_body["events"], stage_body["data"]
        emit({k: v for k, v in body.items() if k != "events"})
    else:
        print(summary(seen))
    if open_:
        import webbrowser

        path = write_report(place, seen.name)
        if path:
            print(f"report: {path}")
            if sys.stdout.isatty():
                webbrowser.open(Path(path).resolve().as_uri())


@app.command()
def why(
    what: Annotated[str, typer.Argument(help="A stage, RUN/STAGE, fingerprint, page URL or document id.")],
    recipe: Annotated[str, typer.Option("--recipe", help="Recipe that a stage name belongs to.")] = "tiny",
    store: StoreOption = DEFAULT_STORE,
    set_: SetOption = None,
    json_: JsonOption = False,
) -> None:
    """Why a stage is built or reused, or a page was kept or dropped."""
    from upslope.cli.look import why_anything

    text, body = why_anything(what, recipe, set_ or [], open_store(store))
    emit(body) if json_ else print(text)


@app.command()
def compare(
    left: Annotated[str, typer.Argument(help="A run or a recipe.")],
    right: Annotated[str, typer.Argument(help="Another of the same sort.")],
    store: StoreOption = DEFAULT_STORE,
    csv: Annotated[bool, typer.Option("--csv", help="Comma-separated.")] = False,
    json_: JsonOption = False,
) -> None:
    """Two recipes: the knobs. Two runs: knobs, first difference, paired results, cost."""
    from upslope.cli.look import compare_anything

    text, body = compare_anything(left, right, open_store(store), csv)
    emit(body) if json_ else print(text)


def guess_form(path: Path, names: Mapping[str, str]) -> str:
    """What a folder or file is to be imported as: a checkpoint, chats, pairs (preferences), tasks (prompts) or a corpus (text)."""
    if (path / "config.json").is_file():
        return "checkpoint"
    from upslope.data.check import check

    forms = {"messages": "chats", "prompt/completion": "chats", "preference": "pairs", "prompts": "tasks"}
    return forms.get(check(path, names).shape, "corpus") if path.is_file() else "corpus"


@app.command("import")
def import_(
    source: Annotated[str, typer.Argument(help="HF folder, JSONL or parquet.")],
    as_: Annotated[str, typer.Option("--as", help="Name of the run that will hold it.")],
    what: Annotated[str, typer.Option("--what", help="checkpoint, corpus, tasks, chats or pairs; guessed if not given.")] = "",
    map_: Annotated[list[str] | None, typer.Option("--map", metavar="OURS=THEIRS", help="Where a field is, e.g. messages=turns.")] = None,
    drop_bad: Annotated[bool, typer.Option("--drop-bad", help="Leave out rows that cannot be used.")] = False,
    store: StoreOption = DEFAULT_STORE,
    json_: JsonOption = False,
) -> None:
    """Bring in a checkpoint, corpus, tasks, chats or pairs, with provenance."""
    from upslope.cli.watch import Lines
    from upslope.data.check import mapping
    from upslope.machine.run import run as run_recipe
    from upslope.machine.stage import Recipe
    from upslope.recipes.overrides import build_stage

    names = mapping(map_ or [])
    form = what or guess_form(Path(source), names)
    fields: dict[str, object] = {"kind": form, "source": source}
    if form in ("chats", "tasks", "pairs"):
        fields |= {"map": dict(names), "drop_bad": drop_bad}
    elif form == "corpus" and "text" in names:
        fields["text"] = names["text"]
    stage = build_stage({"kind": "import", "form": fields}, "import")
    recipe = Recipe(name=as_, stages=FrozenDict({"import": stage}))
    outcome = run_recipe(
        recipe,
        open_store(store),
        watch=Lines(sys.stderr if json_ else sys.stdout),
        command=f"upslope import {Path(source).name} --as {as_}",
    )
    if json_:
        emit({"run": outcome.name, "code": outcome.code, "errors": outcome.errors})
    elif outcome.code == 0:
        print(f"imported as {outcome.name}")
    raise typer.Exit(outcome.code)


@app.command()
def export(
    what: Annotated[str, typer.Argument(help="RUN, RUN/STAGE or an HF folder.")],
    folder: Annotated[Path, typer.Argument(help="New folder for the weights.")],
    form: Annotated[str, typer.Option("--format", "--to", help="hf (opens in transformers and vLLM) or gguf (llama.cpp).")] = "hf",
    dtype: Annotated[str | None, typer.Option("--dtype", help="gguf: f32, f16, bf16 or q8_0; f16 by default.")] = None,
    verify: Annotated[bool, typer.Option("--verify", help="Reload in transformers and compare greedy tokens.")] = False,
    store: StoreOption = DEFAULT_STORE,
    json_: JsonOption = False,
) -> None:
    """Weights for other tools; a model that no gate decided on is stamped ungated."""
    from upslope.cli.models import export_model

    body = export_model(what, folder, form, dtype, verify, open_store(store))
    emit(body) if json_ else print(body["line"])


@app.command()
def chat(
    model: Annotated[str | None, typer.Argument(help="RUN, RUN/STAGE or an HF folder; the newest run by default.")] = None,
    prompt: Annotated[str | None, typer.Option("-p", "--prompt", help="Answer this and exit.")] = None,
    system: Annotated[str, typer.Option("--system", help="System message.")] = "",
    think: Annotated[bool, typer.Option("--think/--free", help="Make it think before it answers.")] = False,
    temperature: Annotated[float, typer.Option("--temperature", min=0.0)] = 0.0,
    store: StoreOption = DEFAULT_STORE,
    json_: JsonOption = False,
) -> None:
    """Talk to a model in the terminal."""
    from upslope.cli.talk import answer_once, talk

    if prompt is not None:
        reply = answer_once(model, prompt, system, think, temperature, open_store(store))
        emit(reply) if json_ else print(reply["answer"])
    else:
        talk(model, system, think, temperature, open_store(store))


@app.command()
def presets(name: Annotated[str | None, typer.Argument(help="One preset, in full.")] = None, json_: JsonOption = False) -> None:
    """Recipes that come with upslope, and the labs' models."""
    from upslope.cli.presets import show

    show(name, json_)


@app.command()
def explain(
    name: Annotated[str, typer.Argument(help="A knob (model.blocks.mixer.window, pretrain.optim.lr), a stage, or a word of one.")],
    json_: JsonOption = False,
) -> None:
    """What a knob means, its default, its source, and which labs set it to what."""
    from upslope.cli.explain import show

    show(name, json_)


@app.command()
def gc(
    apply: Annotated[bool, typer.Option("--apply", help="Really remove; without it nothing is touched.")] = False,
    damaged: Annotated[bool, typer.Option("--damaged", help="Verify everything and move damaged artifacts aside.")] = False,
    forget: Annotated[list[str] | None, typer.Option("--forget", help="Also drop these runs.")] = None,
    young: Annotated[float, typer.Option("--young", help="Spare unclaimed folders younger than this many seconds.")] = 3600.0,
    store: StoreOption = DEFAULT_STORE,
    json_: JsonOption = False,
) -> None:
    """Free space; shows what could go, and removes it only with --apply."""
    from upslope.machine import gc as collector

    place = open_store(store)
    if damaged:
        moved = collector.set_damaged_aside(place)
        emit({"damaged": moved}) if json_ else print("\n".join(f"moved aside: {m}" for m in moved) or "no damaged artifacts")
        return
    items = collector.garbage(place, forget=tuple(forget or ()), young=young)
    freed = collector.collect(items) if apply else sum(i.bytes for i in items)
    if json_:
        emit(
            {
                "applied": apply,
                "bytes": freed,
                "items": [{"path": i.path.relative_to(place.root).as_posix(), "why": i.why, "bytes": i.bytes} for i in items],
            }
        )
        return
    print(table([(i.path.relative_to(place.root).as_posix(), i.why, size(i.bytes)) for i in items], right=(2,)) or "nothing to remove")
    if items:
        print(f"\n{size(freed)} " + ("freed" if apply else "could be freed: `upslope gc --apply`"))


@app.command()
def doctor(store: StoreOption = DEFAULT_STORE, json_: JsonOption = False) -> None:
    """What this machine has, what works, and how to mend what does not."""
    from upslope.cli.look import diagnose

    rows = diagnose(open_store(store))
    emit([{"what": w, "found": f, "remedy": r} for w, f, r in rows]) if json_ else print(table(rows))


@app.command(hidden=True)
def worker(store: Path, fp: str) -> None:
    """Run one job; what every launcher starts."""
    from upslope.machine.worker import main as work

    raise typer.Exit(work([str(store), fp]))
