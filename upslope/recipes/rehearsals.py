"""From a recipe's stage, or a lab's preset at its real size, to what is rehearsed: a model, a job, and what had to be assumed."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from upslope.config import UsageError, validated
from upslope.machine.stage import Recipe, Stage
from upslope.model.config import Llama3, ModelConfig, Yarn
from upslope.optim.config import AdamW, Muon
from upslope.parallel.config import Mesh
from upslope.recipes.labs.lab import Lab
from upslope.train.rehearsal.job import Job, Stored
from upslope.train.rehearsal.machines import Compute, Machine
from upslope.train.rehearsal.mesh import divisors
from upslope.train.stage import Training

VOCAB = 32_768
"""Assumed where a recipe's tokenizer says no size before it is built."""

_STATES: Mapping[str, Stored] = {"fp32": "fp32", "bf16": "bf16", "bf16-sr": "bf16"}
_EXAMPLES = {"chats_per_step": 1, "pairs_per_step": 2}
"""Fields that count examples of a step, and the sequences of one example."""


class Subject(NamedTuple):
    """What is rehearsed. title: of the heading. job: `fitted` chooses its micro. limit: most sequences of one forward pass. assumed: what
    neither recipe nor preset says."""

    title: str
    model: ModelConfig
    job: Job
    limit: int
    assumed: tuple[str, ...]

    def fitted(self, ranks: int, mesh: Mesh | None, changes: Mapping[str, Any]) -> Job:
        """The job with `changes`, and as many sequences a micro-step as `limit` lets each data rank take at a time."""
        if unknown := [name for name in changes if name not in Job.model_fields]:
            raise UsageError(f"job: no {unknown[0]!r} here\nway out: one of {', '.join(Job.model_fields)}")
        job = validated(Job, {name: getattr(self.job, name) for name in Job.model_fields} | dict(changes), "job")
        if "micro" in changes:
            return job
        each, left = divmod(job.batch // job.length, ranks if mesh is None else mesh.data)
        limit = max(1, self.limit * self.job.length // job.length)
        return job if left or not each else job.replace(micro=max(n for n in divisors(each) if n <= limit))


def stages(recipe: Recipe) -> Iterator[tuple[str, Training, ModelConfig, tuple[str, ...]]]:
    """Stages that take gradient steps of a known size on a model that is known before anything runs: (name, stage, model, assumed)."""
    for name, stage in recipe.stages.items():
        if isinstance(stage, Training) and _rows(stage) is not None:
            found = _model(recipe, stage, ())
            if found is not None:
                yield name, stage, *found


def of_recipe(recipe: Recipe, name: str | None = None) -> Subject:
    """What a stage of a recipe trains; without a name, the first that can be rehearsed. UsageError names those that can."""
    known = {n: (stage, model, assumed) for n, stage, model, assumed in stages(recipe)}
    if not known:
        raise UsageError(
            f"recipe {recipe.name!r}: no stage trains a model that is known before the recipe runs\n"
            "way out: a recipe that draws its model (init kind 'scratch'), or a lab's preset: upslope plan llama3-8b --ranks 64"
        )
    if name is not None and name not in known:
        why = "trains no model that is known before it runs" if name in recipe.stages else "is no stage of it"
        raise UsageError(f"--stage {name!r}: {why} (recipe {recipe.name!r})\nway out: one of {', '.join(known)}")
    name = name or next(iter(known))
    stage, model, assumed = known[name]
    (rows, length), notes = _rows(stage) or (0, 0), list(assumed)
    if length == 0:
        length = model.context
        notes.append(f"every sequence fills the context of {length:,} tokens; real ones are shorter")
    per_step = rows * length
    tokens: float | None = None
    if stage.length.unit != "ep":
        tokens = float(per_step * stage.length.steps(per_step, params=model.params()))
    precision = _precision(stage)
    if precision == "fp8":
        notes.append("products of the stage's 8- or 4-bit format run as FP8 on the machine's own kernels (here they are emulated)")
    if getattr(stage, "adapter", None) is not None or stage.only:
        notes.append("all weights are trained: memory of what the stage leaves frozen is counted too much")
    if getattr(stage, "ema", None) is not None:
        notes.append("the moving average of the weights is not counted")
    job = Job(
        optim=stage.optim,
        batch=per_step,
        length=length,
        precision=precision,
        states=_STATES[stage.optim.state],
        recompute=_recompute(stage),
        chunk=4096,
        tokens=tokens,
    )
    others = [n for n in known if n != name]
    title = f"stage {name} of {recipe.name}" + (f" (others: --stage {', '.join(others)})" if others else "")
    limit = max(1, stage.micro_tokens // length) if stage.micro_tokens else rows
    return Subject(title, model, job, limit, tuple(notes))


def of_lab(lab: Lab, machine: Machine) -> Subject:
    """A lab's model at its real size, trained as the lab says where it says so."""
    notes = [f"{lab.title}: {lab.mark}-marked numbers from {lab.source}"]
    length = _first_length(lab.model)
    notes.append(f"sequences of {length:,} tokens (the context before it was extended, or 4,096)")
    batch = _first_batch(lab.training.batch)
    said = f"the lab's first batch ({lab.training.batch})" if batch else "4M tokens; the lab states none"
    sequences = _round(max(1, round((batch or 2**22) / length)))
    notes.append(f"a step of {sequences:,} sequences = {sequences * length / 1e6:,.1f}M tokens: {said}, rounded to divide well")
    precision: Compute = "fp8" if "FP8" in lab.training.precision and "storage" not in lab.training.precision else "bf16"
    if precision == "fp8" and machine.fp8 is None:
        precision = "bf16"
        notes.append(f"bf16: {machine.name} has no FP8 unit; the lab used it")
    optim = lab.training.optim or (Muon() if lab.training.optimizer == "muon" else AdamW())
    states = _STATES[optim.state] if "BF16 moments" not in lab.training.precision else "bf16"
    tokens = lab.training.trillions * 1e12 or None
    notes += [] if tokens else ["no price of the whole run: the lab states no number of tokens"]
    notes.append("float32 weights and gradients, selective recomputation, data-parallel transfers hidden")
    job = Job(optim=optim, batch=sequences * length, length=length, precision=precision, states=states, tokens=tokens)
    return Subject(f"{lab.title} at its real size", lab.model, job, 1, tuple(notes))


def _rows(stage: Stage) -> tuple[int, int] | None:
    """(sequences of a step, tokens of each; 0 = not known before the data); None where steps have no such size."""
    if hasattr(stage, "rows") and hasattr(stage, "row_length"):
        return stage.rows, stage.row_length
    for field, each in _EXAMPLES.items():
        if hasattr(stage, field):
            return each * int(getattr(stage, field)), 0
    return None


def _model(recipe: Recipe, stage: Stage, seen: tuple[str, ...]) -> tuple[ModelConfig, tuple[str, ...]] | None:
    """The model that a stage works on, followed through the checkpoints that it starts from; None where only a run can tell."""
    init = getattr(stage, "init", None)
    own: ModelConfig | None = getattr(init, "model", None)
    source = getattr(init, "checkpoint", None) or next(iter(getattr(stage, "inputs", ())), None)
    before: tuple[ModelConfig, tuple[str, ...]] | None = None
    if source is not None and source.stage in recipe.stages and source.stage not in seen:
        before = _model(recipe, recipe.stages[source.stage], (*seen, source.stage))
    if own is None:
        return None if before is None else (_longer(before[0], stage), before[1])
    if own.vocab:
        return _longer(own, stage), ()
    if before is not None:
        return _longer(own.replace(vocab=before[0].vocab), stage), before[1]
    named = getattr(getattr(stage, "tokenizer", None), "stage", None)
    size = getattr(recipe.stages.get(named or ""), "vocab_size", None)
    if isinstance(size, int):
        return _longer(own.replace(vocab=size), stage), (f"a vocabulary of {size:,}, which the stage {named} is asked for",)
    more = f"a vocabulary of {VOCAB:,}: the tokenizer is not known yet (--set {{stage}}.init.model.vocab=N sets it)"
    return _longer(own.replace(vocab=VOCAB), stage), (more.replace("{stage}", _name_of(recipe, stage)),)


def _name_of(recipe: Recipe, stage: Stage) -> str:
    return next(n for n, s in recipe.stages.items() if s is stage)


def _longer(model: ModelConfig, stage: Stage) -> ModelConfig:
    """With a context as long as the stage's rows."""
    return model.replace(context=max(model.context, getattr(stage, "row_length", 0)))


def _precision(stage: Training) -> Compute:
    """Of a stage's matrix products: a word, or the config of an emulated format."""
    numerics: Any = getattr(stage, "precision", None) or stage.numerics
    kind = numerics if isinstance(numerics, str) else str(getattr(numerics, "kind", "plain"))
    if kind == "plain":
        kind = str(numerics.numerics)
    return "fp32" if kind == "fp32" else "bf16" if kind in ("bf16", "fp16") else "fp8"


def _recompute(stage: Training) -> Any:
    """What a stage recomputes, where it has such a field."""
    found = getattr(stage, "recompute", "none")
    return found if found in ("none", "selective", "alternate", "full") else "none"


def _first_length(model: ModelConfig) -> int:
    """Of pre-training's first sequences: the context that a rope scaling started from, else at most 4,096."""
    scalings = [getattr(getattr(b.mixer, "position", None), "scaling", None) for b in model.blocks.values()]
    starts = [s.original for s in scalings if isinstance(s, Yarn | Llama3)]
    return min(starts) if starts else min(model.context, 4096)


def _first_batch(text: str) -> float | None:
    """Tokens of the first batch that a lab's sentence states: "12.6M to ..." or "1024 x 4096"."""
    if found := re.search(r"(\d+) x (\d+)(K?)", text):
        return float(found[1]) * float(found[2]) * (1024 if found[3] else 1)
    found = re.search(r"(\d+(?:\.\d+)?)M", text)
    return float(found[1]) * 1e6 if found else None


def _round(sequences: int) -> int:
    """To a multiple of the largest power of two that is within 5 %: 3,076 to 3,072, 488 to 512."""
    unit = 1 << sequences.bit_length()
    while abs(round(sequences / unit) * unit / sequences - 1) > 0.05:
        unit //= 2
    return round(sequences / unit) * unit
