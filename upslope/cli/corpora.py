"""What the `data` verbs print: the funnel by language and kind, what-if, samples, lineage, exports. Text, and the same as plain values."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from upslope.cli.tables import size, table
from upslope.config import Duration, UsageError, validated
from upslope.machine.record import RunRecord, StageRecord
from upslope.machine.store import Store

if TYPE_CHECKING:
    from upslope.data.artifacts import Corpus

Answer = tuple[str, Any]
GROUPS = {"language": "languages", "kind": "kinds", "source": "sources"}


def find_corpus(what: str | None, store: Store) -> tuple[str, Corpus]:
    """(name, corpus): a corpus folder, RUN/STAGE, or the most decided corpus of a run (the newest by default) that came from pages."""
    from upslope.data.artifacts import Corpus
    from upslope.machine.run import record

    if what is not None and (Path(what) / "corpus.json").is_file():
        return Path(what).name, Corpus.load(Path(what))
    run, _, name = (what or "").partition("/")
    seen = record(store, run or None)
    stages = corpora(seen)
    if name:
        stages = [s for s in stages if s.name == name]
        if not stages:
            known = ", ".join(s.name for s in corpora(seen)) or "none yet"
            raise UsageError(f"run {seen.name} has no corpus {name!r}; it has: {known}")
    if not stages:
        raise UsageError(f"run {seen.name} has no corpus yet")
    best = max(stages, key=lambda s: len(Corpus.load(s.data).body["decisions"])) if not name else stages[0]
    return f"{seen.name}/{best.name}", Corpus.load(best.data)


def corpora(seen: RunRecord) -> list[StageRecord]:
    """Sealed corpora of a run, the last made first; those that come from pages before made ones."""
    found = [s for s in reversed(seen.stages) if s.manifest and s.manifest["artifact"].endswith(":Corpus")]
    return sorted(found, key=lambda s: s.kind == "synthesize")


def funnel(what: str | None, store: Store, by: str = "") -> Answer:
    """The life of a corpus, step by step; with `by`, what each rule took of each language, kind or source."""
    from upslope.data.funnel import grouped, render

    _, corpus = find_corpus(what, store)
    body = corpus.funnel()
    if not by:
        return render(body), body
    if by not in GROUPS:
        raise UsageError(f"--by {by!r}: by what?\nway out: {', '.join(GROUPS)}")
    rows = grouped(body, GROUPS[by])
    return table(rows[1:], rows[0], right=range(1, len(rows[0]))), [dict(zip(rows[0], r)) for r in rows[1:]]


def what_if(what: str | None, store: Store, rules: Sequence[str], without: Sequence[str], winner: str | None, examples: int = 3) -> Answer:
    """The newest decision taken anew with other rules: NAME=PREDICATE replaces or adds one, `without` leaves one out."""
    import time

    import numpy as np

    from upslope.data import fate
    from upslope.data.artifacts import Corpus
    from upslope.data.curation import Rule, decide
    from upslope.machine.files import absolute

    name, corpus = find_corpus(what, store)
    if not corpus.body["decisions"]:
        raise UsageError(f"{name}: nothing was decided there yet\nway out: name a corpus that a curate stage made")
    last = corpus.body["decisions"][-1]
    view = Corpus(absolute(corpus.path, last["view"]))
    said = {r["name"]: r["keep"] for r in last["rules"]}
    for rule in rules:
        key, eq, predicate = rule.partition("=")
        if not eq or not predicate.strip():
            raise UsageError(f"--rule {rule!r}: wanted NAME=PREDICATE, e.g. 'enough words=gopher.words >= 100'; rules: {', '.join(said)}")
        said[key.strip()] = predicate.strip()
    for key in without:
        if key not in said:
            raise UsageError(f"--without {key!r}: there is no such rule; rules: {', '.join(said)}")
        del said[key]
    began = time.perf_counter()
    keep = decide(view, [Rule(name=n, keep=k) for n, k in said.items()], winner or last["winner"])
    took = time.perf_counter() - began
    old, new = corpus.body["funnel"][-1], keep.funnel
    docs = view.docs()
    was = Corpus(corpus.path).kept()
    gained, lost = np.flatnonzero(keep.kept & ~was), np.flatnonzero(was & ~keep.kept)
    lines = [
        f"{name}: {old['docs']:,} → {new['docs']:,} documents, {size(old['bytes'])} → {size(new['bytes'])}: "
        f"{gained.size:,} gained, {lost.size:,} lost ({took:.1f} s; nothing was written)"
    ]
    rows = []
    for group, key in GROUPS.items():
        for value in sorted({*old[key], *new[key]}, key=lambda v: -new[key].get(v, {"docs": 0})["docs"]):
            a, b = old[key].get(value, {"docs": 0})["docs"], new[key].get(value, {"docs": 0})["docs"]
            if a != b:
                rows.append((group, value, f"{a:,}", f"{b:,}", f"{b - a:+,}"))
    if rows:
        lines += ["", table(rows[:24], ("", "", "before", "after", "change"), right=(2, 3, 4))]
    shown: dict[str, list[dict[str, Any]]] = {}
    for label, places in (("gained", gained), ("lost", lost)):
        some = places[np.linspace(0, places.size - 1, min(examples, places.size)).astype(int)] if places.size else places
        shown[label] = fate.excerpts(corpus, docs[some])
        lines += ["", f"{label}:", *(f"  {e['doc']}  {e['url']}  {e['head']}" for e in shown[label])] if places.size else []
    return "\n".join(lines), {
        "before": old,
        "after": new,
        "gained": int(gained.size),
        "lost": int(lost.size),
        "examples": shown,
        "seconds": took,
    }


def sample(what: str | None, store: Store, count: int, rule: str | None, source: str | None, seed: int) -> Answer:
    """Documents drawn at random: kept ones, or victims of a rule (first those that it alone took) with the values that it saw."""
    from upslope.data import fate

    name, corpus = find_corpus(what, store)
    drawn = fate.sample(corpus, count, rule, source, seed)
    found = fate.excerpts(corpus, drawn.docs)
    what_they_are = f"documents that {rule!r} took, {drawn.alone:,} of them it alone" if rule else "documents kept"
    lines = [f"{name}: {drawn.of:,} {what_they_are}"]
    for e in found:
        lines += ["", f"{e['doc']}  {e['url']}", f"  {e['head']}", *(f"  {r}: {v}" for r, v in e["failed"])]
    return "\n".join(lines), {"of": drawn.of, "alone": drawn.alone, "documents": found}


def lineage(run: str | None, place: str, store: Store) -> Answer:
    """STAGE:STEP[:ROW] of a run → every piece of that batch, back to the record that it was read from."""
    from upslope.data.artifacts import Corpus
    from upslope.data.lineage import origin
    from upslope.machine.run import record

    seen = record(store, run)
    name, _, rest = place.partition(":")
    step, _, row = rest.partition(":")
    stage = seen.stage(name)
    trained = [s.name for s in seen.stages if s.kind == "pretrain"]
    if stage is None or stage.kind != "pretrain" or not step.isdigit() or (row and not row.isdigit()):
        raise UsageError(
            f"lineage {place!r}: wanted STAGE:STEP or STAGE:STEP:ROW of a pretrain stage; {seen.name} has: {', '.join(trained)}"
        )
    stream, shards, plan = _stream(seen, stage)
    if int(step) >= len(plan):
        raise UsageError(f"lineage {place!r}: {seen.name}/{name} has {len(plan)} steps, numbered from 0")
    first, rows = plan[int(step)]
    wanted = [int(row)] if row else list(range(rows))
    homes: dict[tuple[int, str], tuple[str, Corpus]] = {}
    for number, holder in enumerate(shards):
        for corpus_stage in seen.edges[holder.name]:
            made = seen.stage(corpus_stage)
            if made is not None and made.manifest and made.manifest["artifact"].endswith(":Corpus"):
                corpus = Corpus.load(made.data)
                homes.update({(number, source): (made.name, corpus) for source in corpus.sources()})
    found, lines = [], []
    for r in wanted:
        if r >= rows:
            raise UsageError(f"lineage {place!r}: a step has {rows} rows, numbered from 0")
        sample = stream.sample(first + r)
        lines.append(f"{seen.name}/{name} step {step} row {r}: {len(sample.ids)} tokens from {len(sample.pieces)} documents")
        for piece in sample.pieces:
            corpus_name, corpus = homes[piece.shard, piece.source]
            known = origin(corpus, piece.doc)
            found.append({"row": r, "tokens": [piece.start, piece.stop], "corpus": corpus_name, **known})
            where = known.get("record") or (f"made from {', '.join(known['parents'])}" if known["parents"] else "made here")
            lines.append(
                f"  tokens {piece.start}–{piece.stop} of {known['url']} ({piece.source}, {known['licence'] or 'licence unknown'}): {where}"
            )
    return "\n".join(lines), found


def _stream(seen: RunRecord, stage: StageRecord) -> tuple[Any, list[StageRecord], list[tuple[int, int]]]:
    """(the stream that a stage of a run read, the stages of its token shards, first row and rows of each step)."""
    from upslope.machine.rng import seed_of
    from upslope.stages.pretrain import Pretrain
    from upslope.tokens.mixture import Mixture
    from upslope.tokens.shards import TokenShards
    from upslope.tokens.stream import Stream

    if stage.manifest is None:
        raise UsageError(f"{seen.name}/{stage.name} is not finished, so what it read is not on record yet")
    config, manifest = stage.manifest["config"], stage.manifest
    shards = [s for n in config["shards"] if (s := seen.stage(n)) is not None]
    mix = seen.stage(config["mixture"])
    assert mix is not None
    if manifest["facts"].get("rewinds"):
        raise UsageError(f"{seen.name}/{stage.name} went back behind spikes and passed over batches; which, is not on record")
    read = validated(Pretrain, {k: v for k, v in config.items() if k != "kind"})
    assert isinstance(read, Pretrain)
    plan = read.replace(length=Duration(amount=float(manifest["facts"]["steps"]), unit="st")).batches(0, 0)
    seed = read.stream_seed(lambda *index: seed_of(int(manifest["seed"]), *index))
    stream = Stream(
        [TokenShards.load(s.data) for s in shards],
        Mixture.load(mix.data),
        config["row_length"],
        seed,
        total=sum(rows for _, rows in plan),
        packing=config.get("packing", "concat"),
    )
    return stream, shards, plan


def contamination(what: str | None, store: Store, threshold: float) -> Answer:
    """The benchmark × source matrix of a corpus that overlap was computed for."""
    from upslope.data.contamination import columns, matrix, render

    name, corpus = find_corpus(what, store)
    found = columns(corpus)
    if not found:
        raise UsageError(f"{name}: no overlap column\nway out: annotate it with {{ kind = 'overlap', sources = ['benchmark.jsonl'] }}")
    rows = {column: matrix(corpus, column, threshold) for column in found}
    text = "\n\n".join(render(r) if r else f"{column}: no item reaches {threshold:g}" for column, r in rows.items())
    return text, {column: [r._asdict() for r in found_rows] for column, found_rows in rows.items()}


def prove(what: str | None, store: Store) -> tuple[Answer, bool]:
    """((text, values), whether all of it holds): that no kept document was made by a program, and that no span rewrite wrote anything."""
    from upslope.data.lineage import before, human_only
    from upslope.data.spans import prove as prove_spans

    name, corpus = find_corpus(what, store)
    made = human_only([corpus])
    lines = [f"{name}: {len(corpus):,} documents"]
    lines.append(
        "  human only: holds; no kept document has parents or synthetic provenance" if not made else f"  human only: broken by {made[0]}"
    )
    body: dict[str, Any] = {"documents": len(corpus), "human_only": not made, "made": made, "spans": []}
    after = corpus
    for step, earlier in zip(reversed(corpus.body.get("rewrites", [])), before(corpus)):
        rewriter = step["what"]
        if "ranges" in after.fields().get(rewriter, {}):
            proof = prove_spans(earlier, after, rewriter)
            said = (
                f"holds; {proof.cut:,} cut, {proof.empty:,} emptied, {proof.whole:,} whole" if proof.holds else f"broken: {proof.violation}"
            )
            lines.append(f"  {rewriter} only removed: {said}")
            body["spans"].append({"rewriter": rewriter, "holds": proof.holds, **proof._asdict()})
        else:
            lines.append(f"  {rewriter}: a rewrite without certificates; what it wrote is not proved")
            body["spans"].append({"rewriter": rewriter, "holds": None})
        after = earlier
    holds = not made and all(s["holds"] is not False for s in body["spans"])
    return ("\n".join(lines), body), holds


def export(what: str | None, folder: Path, form: str, store: Store) -> Answer:
    """A corpus as Dolma documents (`dolma`), or the token shards of a run as Megatron pairs (`megatron`)."""
    from upslope.machine.run import record

    if form == "dolma":
        from upslope.data.lineage import write_documents

        name, corpus = find_corpus(what, store)
        wrote = write_documents(corpus, folder)
        return f"{name}: {wrote['documents']:,} documents, {size(wrote['bytes'])} of text, in {folder / 'documents'}", dict(wrote)
    if form != "megatron":
        raise UsageError(f"--format {form!r}: which?\nway out: dolma, megatron")
    from upslope.tokens.export import to_megatron
    from upslope.tokens.shards import TokenShards

    seen = record(store, (what or "").partition("/")[0] or None)
    stages = [s for s in seen.stages if s.kind == "tokenize" and s.manifest]
    if not stages:
        raise UsageError(f"run {seen.name} has no token shards yet")
    shards = TokenShards.load(stages[-1].data)
    stems = [to_megatron(shards, source, folder) for source in shards.sources()]
    counts = {s: shards.counts(s).tokens for s in shards.sources()}
    return f"{seen.name}/{stages[-1].name}: {sum(counts.values()):,} tokens of {len(stems)} sources in {folder}", counts
