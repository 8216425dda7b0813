"""classifier: labelled documents → a classifier with a card of what it was measured to do."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field, model_validator

from upslope.config import UsageError, dump
from upslope.data.classify.config import AiText, Embedding, Labels, Ngrams, Share, Taxonomy
from upslope.machine.context import Context
from upslope.machine.stage import Artifact, Stage

if TYPE_CHECKING:
    from upslope.chat.model import Speaker
    from upslope.data.classify.labelling import Labelling
    from upslope.data.classify.train import Example, Examples


class TrainClassifier(Stage):
    """Trains a classifier of texts and writes its card from what it does on documents held out.

    purpose: what it is for, in words; it heads the card. form: what is learnt from what. model: n-grams, or a head on embeddings. test,
    dev: shares of the documents, chosen by the hashes of their texts, that are measured on and that training is stopped by.
    """

    kind: ClassVar[str] = "classifier"
    makes: ClassVar[str] = "Classifier"
    seeded: ClassVar[bool] = True
    code: ClassVar[tuple[str, ...]] = ("upslope.data",)

    purpose: Annotated[str, Field(min_length=1, pattern=r"^[^\n]*$")]
    form: Annotated[Labels | Taxonomy | AiText, Field(discriminator="kind")]
    model: Annotated[Ngrams | Embedding, Field(discriminator="kind")] = Ngrams()
    test: Share = 0.2
    dev: Share = 0.1

    @model_validator(mode="after")
    def _something_to_learn_from(self) -> TrainClassifier:
        if self.test + self.dev >= 1:
            raise ValueError(f"test + dev = {self.test + self.dev:g}: nothing is left to learn from")
        if isinstance(self.form, AiText) and isinstance(self.model, Embedding):
            raise ValueError("the form aitext needs a model of kind ngrams")
        return self

    def run(self, ctx: Context) -> Artifact:
        """UsageError where the examples cannot be learnt from."""
        if isinstance(self.form, Labels):
            return _labels(self, self.form, ctx)
        return _taxonomy(self, self.form, ctx) if isinstance(self.form, Taxonomy) else _aitext(self, self.form, ctx)


def _ask(ctx: Context, teacher: Speaker, texts: list[str], question: Callable[[str], str], read: Callable[[str], Any]) -> Labelling:
    """The teacher's labels; replies already had are not asked for again."""
    from upslope.data.classify.labelling import asked

    def between(done: int) -> None:
        ctx.events.progress(done, len(texts), "texts")
        ctx.check_stop()

    return asked(texts, question, read, teacher.bind(ctx).open(), folder=ctx.work / "teacher", between=between)


def _taught(found: Sequence[Labelling]) -> dict[str, Any]:
    """What the card says of the teacher."""
    from collections import Counter

    why = Counter(r.why for part in found for r in part.rejects)
    asked = sum(len(part.labels) for part in found)
    rejected, abstained = sum(why.values()), sum(part.abstained for part in found)
    return {
        "asked": asked,
        "labelled": asked - rejected - abstained,
        "abstained": abstained,
        "unreadable": rejected,
        "why": dict(why.most_common(5)),
    }


def _labels(stage: TrainClassifier, form: Labels, ctx: Context) -> Artifact:
    import numpy as np
    import pyarrow as pa

    from upslope.data.artifacts import Corpus
    from upslope.data.classify import labelling, metrics, train
    from upslope.data.classify.artifact import Classifier, scores
    from upslope.stats.intervals import wilson

    rows: list[Example] = []
    replies: list[Labelling] = []
    for of in form.examples:

        def ask(texts: list[str], of: Any = of) -> list[Any]:
            assert form.teacher is not None
            replies.append(
                _ask(ctx, form.teacher, texts, lambda t: labelling.prompt(t, of.rubric), lambda r: labelling.parse(r, of.rubric))
            )
            return replies[-1].labels

        rows += train.labelled(ctx.open(of.corpus, Corpus), of, form.target, ask)
    examples = train.Examples.of(rows, stage.dev, stage.test)
    head = train.head_of(examples.rows, form.target, form.positive)
    parts = [examples.part(i) for i in (train.TRAIN, train.DEV, train.TEST)]
    _enough(parts[2])
    learn, dev, test = (train.Labels([r.text for r in p], *train.targets(p, head, form.balance)) for p in parts)
    model, log = train.train(stage.model, (head,), learn, dev, ctx.seed)
    body: dict[str, Any] = {"form": "labels", **model.body(), "positive": form.positive, "cuts": [], "range": [0.0, 0.0]}
    if head.kind == "number":
        body["range"] = [float(learn.target.min()), float(learn.target.max())]
    if form.buckets:
        if form.over:
            part = [b["text"] for ref in form.over for b in ctx.open(ref, Corpus).batches(("text",))]
            found = np.concatenate([scores(model(t), head, body) for t in part]) if part else np.empty(0, np.float32)
        else:
            found = scores(model([*dev.texts, *test.texts]), head, body)
        if len(found) < form.buckets:
            raise UsageError(f"form.buckets = {form.buckets}, but there are {len(found)} documents to cut\nway out: fewer buckets")
        body["cuts"] = np.quantile(found, np.arange(1, form.buckets) / form.buckets).tolist()
    artifact = Classifier.write(ctx.out, body, model.arrays())
    means = model(pa.array(test.texts))
    target = train.targets(parts[2], head)[0]
    score = scores(means, head, body)
    measured = metrics.measure(head, means, target, score, form.positive, wilson, ctx.seed)
    extra = {"bucket_cuts": body["cuts"]} if form.buckets else {}
    training = {"model": dump(stage.model), **log, "seed": ctx.seed, **extra}
    _write_card(stage, ctx, examples, measured, training, metrics.right(head, means, target, body["range"]), replies)
    ctx.fact(documents=len(examples.rows), held_out=len(parts[2]), accuracy=measured["accuracy"]["value"], classes=list(head.classes))
    low, high = measured["accuracy"]["low"], measured["accuracy"]["high"]
    ctx.say(f"right on {measured['accuracy']['value']:.1%} of {len(parts[2]):,} held-out documents (95 % interval {low:.1%} to {high:.1%})")
    return artifact


def _taxonomy(stage: TrainClassifier, form: Taxonomy, ctx: Context) -> Artifact:
    import numpy as np
    import pyarrow as pa

    from upslope.data.artifacts import Corpus
    from upslope.data.classify import metrics, taxonomy, train
    from upslope.data.classify.artifact import Classifier
    from upslope.stats.intervals import wilson

    found = [r for ref in form.corpora for r in train.documents(ctx.open(ref, Corpus), form.sources, form.limit)]
    distinct = train.Examples.of([train.Example(t, "", meta, h) for t, _, meta, h in found], stage.dev, stage.test)
    texts = [r.text for r in distinct.rows]
    replies = _ask(
        ctx, form.teacher, texts, lambda t: taxonomy.prompt(t, form.fields, form.shown), lambda r: taxonomy.parse(r, form.fields)
    )
    answers = {r.text: a for r, a in zip(distinct.rows, replies.labels) if a is not None}
    rows = [r._replace(label=json.dumps(answers[r.text])) for r in distinct.rows if r.text in answers]
    examples = replace(train.Examples.of(rows, stage.dev, stage.test), repeats=distinct.repeats)
    parts = [examples.part(i) for i in (train.TRAIN, train.DEV, train.TEST)]
    _enough(parts[2])
    taught = [[answers[r.text] for r in p] for p in parts]
    heads = taxonomy.heads_of(taught[0], form.fields, form.least)
    learn, dev = (train.Labels([r.text for r in p], *taxonomy.targets(a, heads, form.secondary)) for p, a in zip(parts[:2], taught[:2]))
    model, log = train.train(stage.model, heads, learn, dev, ctx.seed)
    artifact = Classifier.write(ctx.out, {"form": "taxonomy", **model.body(), "secondary": form.secondary}, model.arrays())
    decoded = taxonomy.decode(model(pa.array([r.text for r in parts[2]])), heads, form.secondary)
    fields, right = {}, np.zeros(len(parts[2]))
    for head in heads:
        truth = [a[head.name] for a in taught[2]]
        fields[head.name] = metrics.agreement(truth, decoded[head.name], wilson, ctx.seed)
        fields[head.name]["classes"] = len(head.classes)
        right += np.array([t[0] == g for t, g in zip(truth, decoded[head.name][0])])
    kappas = [f["kappa"]["value"] for f in fields.values() if f["kappa"]["value"] is not None]
    mean = float(np.mean(kappas)) if kappas else None
    measured = {"mean_kappa": mean, "agreement_over_all_fields": float(right.mean() / len(heads)), "fields": fields}
    training = {"model": dump(stage.model), **log, "seed": ctx.seed}
    _write_card(stage, ctx, examples, measured, training, right == len(heads), [replies])
    ctx.fact(documents=len(examples.rows), held_out=len(parts[2]), mean_kappa=mean, unreadable=len(replies.rejects))
    ctx.say(f"agrees with its teacher on {len(parts[2]):,} held-out documents: mean kappa {'–' if mean is None else f'{mean:.2f}'}")
    return artifact


def _aitext(stage: TrainClassifier, form: AiText, ctx: Context) -> Artifact:
    import numpy as np

    from upslope.data.artifacts import Corpus
    from upslope.data.classify import aitext, lm, metrics, train
    from upslope.data.classify.artifact import Classifier, buffers
    from upslope.stats.intervals import clopper_pearson

    assert isinstance(stage.model, Ngrams)
    rows, undated = [], 0
    for label, refs in (("human", form.human), (aitext.MACHINE, form.machine)):
        for ref in refs:
            for text, _, meta, h in train.documents(ctx.open(ref, Corpus)):
                if label == "human" and not form.trusted and not aitext.is_before(meta["date"], form.cutoff):
                    undated += 1
                else:
                    rows.append(train.Example(text, label, meta, h))
    examples = train.Examples.of(rows, stage.dev, stage.test)
    if {r.label for r in examples.rows} != {"human", aitext.MACHINE}:
        raise UsageError(
            f"aitext needs texts of either kind; {undated} pages of `human` are not from before {form.cutoff}\n"
            "way out: pages crawled earlier, or trusted = true if you know that people wrote them"
        )
    learn, dev, test = (examples.part(i) for i in (train.TRAIN, train.DEV, train.TEST))
    # half of the development split fits the coefficients, the other half chooses the threshold
    fitted = [train.text_hash(r.text, "upslope.classify.fold") < 0.5 for r in dev]
    fitting, choosing = [r for r, f in zip(dev, fitted) if f], [r for r, f in zip(dev, fitted) if not f]
    for part in (learn, fitting):
        if {r.label for r in part} != {"human", aitext.MACHINE}:
            raise UsageError("aitext: too few texts of either kind to learn from\nway out: more texts, or a larger share `dev`")
    parts = [train.Labels([r.text for r in p], *train.targets(p, aitext.HEAD, True)) for p in (learn, fitting)]
    model, log = train.train(stage.model, (aitext.HEAD,), parts[0], parts[1], ctx.seed)
    human, machine = (
        lm.train(*buffers(_sample([r for r in learn if r.label == label], form.lm_bytes)), form.order)
        for label in ("human", aitext.MACHINE)
    )
    settings = {k: v for k, v in dump(form).items() if k in ("cutoff", "phrases", "limit", "prior", "order", "fpr")}
    detector = aitext.Detector(model, human, machine, {"form": "aitext", **model.body(), **settings})
    detector.fit([r.text for r in fitting], np.array([r.label == aitext.MACHINE for r in fitting], bool))
    dated = any(aitext.is_before(r.meta["date"], form.cutoff) for r in examples.rows if r.label == "human")

    def sure(part: Sequence[Example]) -> list[Example]:
        human = [r for r in part if r.label == "human"]
        return [r for r in human if aitext.is_before(r.meta["date"], form.cutoff)] if dated else human

    chosen = detector.signals([r.text for r in sure(choosing)])
    # never below 0: where the kinds are easily told apart, a quantile of human scores would flag pages that are likelier human
    detector.body["threshold"] = max(0.0, aitext.threshold(detector.combined(chosen), form.fpr))
    people, machines = sure(test), [r for r in test if r.label == aitext.MACHINE]
    _enough(people)
    _enough(machines)
    signals = [detector.signals([r.text for r in part]) for part in (people, machines)]
    artifact = Classifier.write(ctx.out, detector.body, detector.arrays())
    measured = metrics.triage(detector, chosen, signals, form.fpr, clopper_pearson, ctx.seed)
    kind = f"pages crawled before {form.cutoff}" if dated else "pages vouched for as human, not dated"
    training: dict[str, Any] = {"model": dump(stage.model), **log, "seed": ctx.seed}
    training |= {k: v for k, v in detector.body.items() if k in ("coefficients", "cutoff", "prior", "fpr", "order")}
    training |= {"human_pages_left_out_as_not_early": undated, "false_positives_measured_on": kind}
    clear = detector.combined(signals[0]) <= detector.body["threshold"]
    _write_card(stage, ctx, examples, measured, training, clear, [], people)
    rate, power = measured["false_positive_rate"], measured["true_positive_rate"]
    ctx.fact(documents=len(examples.rows), false_positive_rate=rate, true_positive_rate=power)
    ctx.say(
        f"flags {power['value']:.1%} of {power['n']:,} machine texts and {rate['value']:.2%} of {rate['n']:,} human pages "
        f"(at most {rate['high']:.2%}, 95 % interval)"
    )
    return artifact


def _sample(rows: Sequence[Example], budget: int) -> list[str]:
    """Texts in the order of their hashes until they fill the budget; at least one."""
    from upslope.data.classify.train import text_hash

    out: list[str] = []
    size = 0
    for text in sorted((r.text for r in rows), key=lambda t: (text_hash(t, "upslope.classify.lm"), t)):
        size += len(text.encode())
        if out and size > budget:
            break
        out.append(text)
    return out


def _enough(held_out: Sequence[Example]) -> None:
    if not held_out:
        raise UsageError("no document was held out, so nothing can be measured\nway out: more documents, or a larger share `test`")


def _write_card(
    stage: TrainClassifier,
    ctx: Context,
    examples: Examples,
    measured: Mapping[str, Any],
    training: Mapping[str, Any],
    right: Any,
    replies: Sequence[Labelling],
    shown: Sequence[Example] | None = None,
) -> None:
    """card.json, card.md, and labels.parquet: which document had which label in which split."""
    import pyarrow as pa

    from upslope.data import shards
    from upslope.data.classify import card, metrics, train
    from upslope.machine.files import write_json, write_text
    from upslope.stats.intervals import clopper_pearson, wilson

    limits = clopper_pearson if isinstance(stage.form, AiText) else wilson  # where a bound must hold, it is the exact one
    held_out = examples.part(train.TEST) if shown is None else shown
    body: dict[str, Any] = {
        "purpose": stage.purpose,
        "form": stage.form.kind,
        "data": {**card.provenance(examples, not isinstance(stage.form, Taxonomy)), **({"teacher": _taught(replies)} if replies else {})},
        "training": dict(training),
        "metrics": dict(measured),
        "by_language": metrics.breakdown([r.meta["lang"] for r in held_out], right, limits),
        "by_source": metrics.breakdown([r.meta["source"] for r in held_out], right, limits),
    }
    body["limits"] = card.limits(body)
    write_json(ctx.out / "card.json", body)
    write_text(ctx.out / "card.md", card.render(body))
    names = ("train", "dev", "test")
    label = [",".join(r.label) if isinstance(r.label, tuple) else str(r.label) for r in examples.rows]
    columns = {c: [r.meta[c] for r in examples.rows] for c in ("url", "source")}
    shards.write(ctx.out / "labels.parquet", pa.table({**columns, "split": [names[s] for s in examples.split], "label": label}))
