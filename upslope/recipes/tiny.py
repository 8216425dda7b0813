"""tiny: the whole recipe in minutes on two CPU cores, in the article's order, from real pages to a released model.

Sizes and settings are those that `docs/log.md` shows to work at 0.6M parameters; none of them is a statement about larger
models.
"""

from __future__ import annotations

from upslope.align.gated import Gated
from upslope.align.reward_model import RewardModel as LearnedReward
from upslope.align.secret import Secret
from upslope.config import Duration, FrozenDict, Input, Source
from upslope.data.annotators.gopher import Gopher
from upslope.data.annotators.langid import LangId
from upslope.data.annotators.overlap import Overlap
from upslope.data.annotators.repetition import Repetition
from upslope.data.protocol import Rule
from upslope.evals.suites import Accuracy, BigramBaseline, BitsPerByte
from upslope.machine.stage import Recipe, Stage
from upslope.model.config import tiny as tiny_model
from upslope.optim.config import AdamW, Muon
from upslope.optim.schedule import WSD, LinearToZero
from upslope.rl.buffer import Curriculum
from upslope.rl.objective import dapo
from upslope.rl.rewards import Exact, Part, Weighted
from upslope.stages.annotate import Annotate
from upslope.stages.contrast import Contrast
from upslope.stages.curate import Curate
from upslope.stages.dedup import Dedup
from upslope.stages.distill import Distill, OnPolicy
from upslope.stages.evaluate import Evaluate
from upslope.stages.extract import Extract
from upslope.stages.gate import Gate
from upslope.stages.ingest import Ingest
from upslope.stages.keep import Keep
from upslope.stages.merge import Merge
from upslope.stages.mix import Mix
from upslope.stages.preference import Preference
from upslope.stages.pretrain import Pretrain
from upslope.stages.redteam import RedTeam
from upslope.stages.release import ReleaseStage
from upslope.stages.reward_model import RewardModel
from upslope.stages.rl import Rl
from upslope.stages.sample import Sample
from upslope.stages.sft import Sft
from upslope.stages.synthesize import Demos, Problems, Synthesize, Texts
from upslope.stages.tokenize import Tokenize
from upslope.stages.tokenizer import TrainTokenizer
from upslope.train.init import Load, Scratch

DOCS = {
    "python3.11-doc": "PSF-2.0",
    "postgresql-doc-15": "PostgreSQL",
    "sqlite3-doc": "public-domain",
    "apache2-doc": "Apache-2.0",
    "python-sympy-doc": "BSD-3-Clause",
    "python-sklearn-doc": "BSD-3-Clause",
    "python-mpmath-doc": "BSD-3-Clause",
}
"""The English sources of the crawl that pre-training reads, with their licences; the others are labelled, judged and counted like them."""

FAMILIES = ("add", "sub", "chain", "compare", "parity", "reverse", "sort")
"""Families whose worked solutions this budget teaches; with all eleven, each is learnt too poorly for RL to find anything."""

ROWS, ROW = 16, 128
"""Pre-training reads 16 rows of 128 tokens a step; mid-training half as many rows of twice the length."""


def data(pretrain_tokens: int, midtrain_tokens: int, texts: int, worked: int, heldout: int = 16) -> dict[str, Stage]:
    """Pages to tokens: what is read, what is dropped and why, what is made, how it is mixed."""
    real, made = 0.4 / len(DOCS), 0.6
    return {
        "crawl": Ingest(sources=(Source(uri="package:crawl.warc.gz"),)),
        "text": Extract(pages=Input(stage="crawl")),
        "labels": Annotate(corpus=Input(stage="text"), steps=(LangId(), Gopher(), Repetition())),
        "copies": Dedup(corpus=Input(stage="labels")),
        "problems": Synthesize(form=Problems(families=FAMILIES, train=1500, heldout=heldout)),
        "secrets": Synthesize(form=Problems(families=("secret",), train=400, heldout=25)),
        "leaks": Annotate(
            corpus=Input(stage="copies"),
            steps=(Overlap(against=(Input(stage="problems"),), sources=(Source(uri="package:planted.json"),)),),
        ),
        "corpus": Curate(
            corpus=Input(stage="leaks"),
            rules=(
                Rule(name="not empty", keep="bytes > 0"),
                Rule(name="english", keep="langid.lang = 'en'"),
                Rule(name="enough words", keep="gopher.words >= 50"),
                Rule(name="word length", keep="gopher.mean_word_length between 3 and 10"),
                Rule(name="symbols", keep="gopher.symbol_ratio <= 0.1"),
                Rule(name="stop words", keep="gopher.stop_words >= 2"),
                Rule(name="repeated lines", keep="repetition.line_dup_bytes <= 0.5"),
                Rule(name="evaluation items", keep="not overlap.exact and overlap.coverage < 0.4"),
            ),
            winner="url like '%mirror.%', bytes desc, doc",
        ),
        "worked": Synthesize(form=Texts(tasks=(Input(stage="problems"), Input(stage="secrets")), count=texts, bare=0.3, source="worked")),
        "reasoning": Synthesize(
            form=Texts(tasks=(Input(stage="problems"), Input(stage="secrets")), count=worked, bare=0.0, source="reasoning")
        ),
        "tokenizer": TrainTokenizer(corpora=(Input(stage="corpus"), Input(stage="worked")), vocab_size=1024),
        "shards": Tokenize(
            tokenizer=Input(stage="tokenizer"), corpora=(Input(stage="corpus"), Input(stage="worked"), Input(stage="reasoning"))
        ),
        "mix": Mix(
            shards=(Input(stage="shards"),),
            weights=FrozenDict({**dict.fromkeys(DOCS, real), "worked": made}),
            tokens=pretrain_tokens,
            cap=6.0,
        ),
        "midmix": Mix(
            shards=(Input(stage="shards"),),
            weights=FrozenDict({**{d: 0.05 / len(DOCS) for d in DOCS}, "reasoning": 0.95}),
            tokens=midtrain_tokens,
            cap=6.0,
        ),
    }


def base(pretrain_tokens: int, midtrain_tokens: int) -> dict[str, Stage]:
    """Pre-training and mid-training: the context doubles, worked solutions take over."""
    muon = Muon(lr=6e-3, weight_decay=0.0, adamw=AdamW(lr=6e-3, weight_decay=0.0))
    shards = (Input(stage="shards"),)
    return {
        "pretrain": Pretrain(
            init=Scratch(model=tiny_model()),
            tokenizer=Input(stage="tokenizer"),
            shards=shards,
            mixture=Input(stage="mix"),
            length=Duration(amount=pretrain_tokens, unit="tok"),
            rows=ROWS,
            row_length=ROW,
            z_loss=1e-4,
            optim=muon,
            schedule=WSD(warmup=20, decay=0.2),
        ),
        "midtrain": Pretrain(
            init=Load(checkpoint=Input(stage="pretrain")),
            shards=shards,
            mixture=Input(stage="midmix"),
            length=Duration(amount=midtrain_tokens, unit="tok"),
            rows=ROWS // 2,
            row_length=2 * ROW,
            z_loss=1e-4,
            optim=muon.replace(lr=4e-3, adamw=AdamW(lr=4e-3, weight_decay=0.0)),
            schedule=WSD(warmup=10, decay=0.7),
        ),
    }


def fine_tune(start: str, chats: str, steps: int) -> Sft:
    """Supervised fine-tuning of a stage's checkpoint on a stage's chats."""
    return Sft(
        init=Load(checkpoint=Input(stage=start)),
        chats=(Input(stage=chats),),
        length=Duration(amount=steps, unit="st"),
        chats_per_step=64,
        optim=AdamW(lr=2e-3, weight_decay=0.0),
        schedule=LinearToZero(warmup=5),
    )


def climb(start: str, steps: int) -> Rl:
    """Reinforcement learning with exact verifiers from a stage's checkpoint."""
    return Rl(
        init=Load(checkpoint=Input(stage=start)),
        tasks=Input(stage="problems"),
        objective=dapo(),
        optim=AdamW(lr=3e-4, weight_decay=0.0),
        steps=steps,
    )


def dpo(start: str, pairs: str) -> Preference:
    """DPO from a stage's checkpoint; on corrupted answers, or at a higher rate, it hurts the tasks."""
    return Preference(
        init=Load(checkpoint=Input(stage=start)),
        pairs=(Input(stage=pairs),),
        length=Duration(amount=1, unit="ep"),
        optim=AdamW(lr=2e-4, weight_decay=0.0),
    )


def accuracy() -> tuple[Accuracy, Accuracy]:
    """Held-out accuracy when the model is free to think or not, and when it is made to think."""
    return Accuracy(limit=448), Accuracy(limit=448, think="forced")


def tiny(seed: int = 0) -> Recipe:
    """Raw pages to a released reasoning model in minutes: every stage, small enough for two cores."""
    pretrain_tokens, midtrain_tokens = 840 * ROWS * ROW, 280 * ROWS * ROW
    problems, secrets = Input(stage="problems"), Input(stage="secrets")
    final = Input(stage="consolidate")
    stages: dict[str, Stage] = {
        **data(pretrain_tokens, midtrain_tokens, texts=45_000, worked=16_000),
        **base(pretrain_tokens, midtrain_tokens),
        "eval_base": Evaluate(
            checkpoint=Input(stage="pretrain"),
            shards=(Input(stage="shards"),),
            mixture=Input(stage="mix"),
            suites=(BitsPerByte(), BigramBaseline(steps=pretrain_tokens // (ROWS * ROW), rows=ROWS, row_length=ROW)),
        ),
        # ── a starting point, and the climb ──
        "demos": Synthesize(form=Demos(tasks=(problems, secrets), count=12_800, direct=0.6, leak=0.3)),
        "sft": fine_tune("midtrain", "demos", steps=200),
        "eval_sft": Evaluate(checkpoint=Input(stage="sft"), tasks=problems, suites=accuracy()),
        "climb": climb("sft", steps=36),
        "eval_climb": Evaluate(checkpoint=Input(stage="climb"), tasks=problems, suites=accuracy()),
        # ── the model as its own data factory ──
        "answers": Sample(checkpoint=Input(stage="climb"), tasks=problems, prompts=2048, samples=2),
        "discretion": Sample(checkpoint=Input(stage="climb"), tasks=secrets, prompts=768, samples=2),
        "keepers": Keep(traces=(Input(stage="answers"), Input(stage="discretion")), per_prompt=2),
        "savepoint": fine_tune("midtrain", "keepers", steps=120),
        "student": Distill(
            init=Load(checkpoint=Input(stage="savepoint")),
            teacher=Input(stage="climb"),
            form=OnPolicy(tasks=(problems, secrets), prompts=128, max_new=48),
            length=Duration(amount=10, unit="st"),
            optim=AdamW(lr=5e-4, weight_decay=0.0),
        ),
        # ── preferences, and the second climb ──
        "drafts": Sample(checkpoint=Input(stage="sft"), tasks=problems, prompts=1664, samples=6),
        "pairs": Contrast(traces=(Input(stage="drafts"),), per_prompt=2, heldout=0.4),
        "reward_model": RewardModel(
            init=Load(checkpoint=Input(stage="sft")),
            pairs=(Input(stage="pairs"),),
            length=Duration(amount=2, unit="ep"),
            optim=AdamW(lr=1e-3, weight_decay=0.0),
        ),
        "preference": dpo("sft", "pairs"),
        "climb_align": Rl(
            init=Load(checkpoint=Input(stage="student")),
            tasks=secrets,
            reward=Gated(
                vetoes=(Part(reward=Secret()),),
                quality=Weighted(
                    parts=(Part(reward=Exact(), weight=0.8), Part(reward=LearnedReward(checkpoint=Input(stage="reward_model")), weight=0.2))
                ),
            ),
            objective=dapo(),
            optim=AdamW(lr=3e-4, weight_decay=0.0),
            curriculum=Curriculum(),
            steps=12,
            prompts=16,
        ),
        "consolidate": Merge(inputs=(Input(stage="student"), Input(stage="climb_align"))),
        # ── measure, attack, decide, release ──
        "eval_final": Evaluate(checkpoint=final, tasks=problems, shards=(Input(stage="shards"),), suites=(*accuracy(), BitsPerByte())),
        "redteam": RedTeam(checkpoint=final, tasks=problems),
        "gate": Gate(checkpoint=final, evidence=(Input(stage="eval_final"), Input(stage="redteam"))),
        "release": ReleaseStage(
            checkpoint=final,
            decision=Input(stage="gate"),
            evidence=(Input(stage="eval_final"), Input(stage="redteam")),
            data=(Input(stage="shards"),),
            name="upslope tiny",
            licence="Apache-2.0",
            licences=FrozenDict({**DOCS, "worked": "generated", "reasoning": "generated"}),
        ),
    }
    return Recipe(name="tiny", seed=seed, stages=FrozenDict(stages))
