"""The release: the weights as a Hugging Face folder, with a card that is generated from the evidence alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from upslope.evals.artifacts import Estimate, Row, Table, estimate, grouped
from upslope.evals.subject import Deployment, Subject
from upslope.machine.files import digest_path, link, read_json, walk, write_json, write_text
from upslope.machine.stage import Artifact, Refused, Undecided
from upslope.safety.gate import Decision, uncovered

CAN, CANNOT = 0.5, 0.5  # a family is "can" if its lower limit, "cannot" if its upper limit, is on that side


class DataSource(NamedTuple):
    """A source of training text. heldout: documents kept out of training for evaluation."""

    name: str
    documents: int
    tokens: int
    bytes: int
    licence: str
    heldout: int = 0


class Release(Artifact):
    """A folder that `transformers` loads, with `README.md` (the model card) and `release.json` (what stands behind it)."""

    def json(self) -> dict[str, Any]:
        """The content of `release.json`."""
        return dict(read_json(self.path / "release.json"))


def admit(decision: Decision, subject: Subject, tables: Sequence[Table]) -> dict[str, Any]:
    """The decision, if it allows the release of exactly this object on exactly this evidence.

    Raises Refused where the decision covers something else, was edited, or says no; Undecided where evidence was missing.
    """
    body = decision.json()
    if reason := uncovered(body, subject, tables):
        raise Refused(f"refused: {reason}\nway out: run the gate on this object with this evidence")
    if body["outcome"] == "insufficient":
        raise Undecided(f"{body['label']}: {'; '.join(body['reasons'])}")
    if body["outcome"] != "satisfied":
        raise Refused(f"refused ({body['label']}): {'; '.join(body['reasons'])}")
    return body


def write_release(
    out: Path,
    name: str,
    weights: Path,
    deployment: Deployment,
    decision: Mapping[str, Any],
    tables: Sequence[Table],
    sources: Sequence[DataSource] = (),
    licence: str = "not stated",
    contamination: Mapping[str, Any] | None = None,
) -> Release:
    """Links the weights into `out` and writes card, generation settings and provenance; equal inputs give equal bytes.

    decision: what `admit` returned. licence: of the weights. contamination: `TokenShards.contamination` of what it was trained on.
    """
    for file in walk(weights):
        if file.name != "generation_config.json":
            link(file, out / file.relative_to(weights))
    settings = read_json(weights / "generation_config.json") if (weights / "generation_config.json").is_file() else {}
    write_json(out / "generation_config.json", settings | _generation(deployment))
    provenance = {
        "name": name,
        "object": decision["object"],
        "object_digest": decision["object_digest"],
        "outcome": decision["label"],
        "demo": decision["demo"],
        **({"watermark": decision["watermark"]} if decision["demo"] else {}),
        "system_prompt": deployment.system,
        "framework": decision["framework"]["name"],
        "framework_digest": decision["framework_digest"],
        "evidence": [e["digest"] for e in decision["evidence"]],
        "sources": [s._asdict() for s in sources],
        "contamination": dict(contamination or {}),
        "licence": licence,
        "files": {f.relative_to(weights).as_posix(): digest_path(f) for f in walk(weights) if f.name != "generation_config.json"},
    }
    write_json(out / "release.json", provenance)
    write_text(out / "README.md", card(name, decision, tables, sources, licence, deployment, contamination or {}))
    return Release.load(out)


def _generation(deployment: Deployment) -> dict[str, Any]:
    """The deployment as Hugging Face generation settings: what is released by default is what was evaluated."""
    greedy = deployment.temperature == 0
    sampled = {"temperature": deployment.temperature, "top_p": deployment.top_p, "top_k": deployment.top_k}
    return {"do_sample": not greedy, "max_new_tokens": deployment.max_new, **({} if greedy else sampled)}


def card(
    name: str,
    decision: Mapping[str, Any],
    tables: Sequence[Table],
    sources: Sequence[DataSource],
    licence: str,
    deployment: Deployment,
    contamination: Mapping[str, Any],
) -> str:
    """The model card in Markdown. Every number in it is an estimate from a row of the evidence, with interval and n."""
    rows = [row for table in tables for row in table.rows()]
    suites = sorted({r.suite for r in rows})
    lines = [f"# {name}", ""]
    if decision["demo"]:
        lines += [f"> **{decision['watermark']}.** The rules demonstrate the machinery; they say nothing about safety.", ""]
    lines += ["## What it can and cannot do", "", *_abilities([r for r in rows if r.suite == "accuracy" and r.metric == "correct"]), ""]
    lines += ["## Evaluation", "", "95 % intervals; n = items. Suites are described in the evidence's `conditions.json`.", ""]
    lines += _table(
        ("suite", "metric", "value", "interval", "n"),
        [
            (s, m, _number(e), _interval(e), str(e.n))
            for s in suites
            for m in sorted({r.metric for r in rows if r.suite == s})
            for e in [estimate([r for r in rows if r.suite == s and r.metric == m], group="")]
        ],
    )
    lines += ["## Decision", "", f"{decision['label']} (framework `{decision['framework']['name']}`).", ""]
    lines += _table(
        ("rule", "category", "outcome", "measured"),
        [(f["indicator"]["name"], f["indicator"]["category"], f["outcome"], f["why"]) for f in decision["findings"]],
    )
    lines += ["Not tested:", "", *[f"- {what}" for what in decision["not_tested"] or ["the framework names nothing"]], ""]
    lines += ["It holds for this object alone: other weights, numerics, template, system prompt or sampling are not covered.", ""]
    lines += _table(("part of the object", "value"), [(k, f"`{v}`") for k, v in decision["object"].items()])
    lines += ["## Training data", ""]
    lines += (
        _table(
            ("source", "documents", "tokens", "bytes", "held out", "licence"),
            [(s.name, f"{s.documents:,}", f"{s.tokens:,}", f"{s.bytes:,}", f"{s.heldout:,}", s.licence) for s in sources],
        )
        if sources
        else ["Not recorded: no token shards were given to the release.", ""]
    )
    if contamination:
        lines += ["Evaluation items looked for in the training pages, and how many are left in what was kept:", ""]
        lines += _table(
            ("corpus", "benchmark", "items", "found", "still there", "threshold"),
            [
                (corpus, benchmark, f"{v['items']}", f"{v['hit']}", f"{v['kept_hits']}", f"{v['threshold']}")
                for corpus, columns in sorted(contamination.items())
                for verdicts in columns.values()
                for benchmark, v in sorted(verdicts.items())
            ],
        )
    else:
        lines += ["Nothing is on record about evaluation items in the training text: nobody looked, or not here.", ""]
    lines += ["## Use", "", f"Licence of the weights: {licence}.", ""]
    sampled = f"temperature {deployment.temperature:g}, top-p {deployment.top_p:g}, top-k {deployment.top_k}"
    how = sampled if deployment.temperature else "greedy"
    lines += [f"System prompt: {deployment.system or 'none'}. Answers: at most {deployment.max_new} tokens, {how}.", ""]
    lines += [
        "```python",
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        "",
        'model, tokenizer = AutoModelForCausalLM.from_pretrained("."), AutoTokenizer.from_pretrained(".")',
        'ids = tokenizer.apply_chat_template([{"role": "user", "content": "..."}], add_generation_prompt=True, return_tensors="pt")',
        "```",
        "",
    ]
    lines += [
        "## Provenance",
        "",
        *[f"- evidence `{e['digest']}`: {', '.join(sorted(e['suites']))}" for e in decision["evidence"]],
        f"- rules `{decision['framework_digest']}`",
        f"- object `{decision['object_digest']}`",
        "",
    ]
    return "\n".join(lines)


def _abilities(rows: Sequence[Row]) -> list[str]:
    if not rows:
        return ["Not measured: the evidence has no suite `accuracy`."]
    found: dict[str, list[str]] = {"Can": [], "Cannot": [], "Undecided at this number of items": []}
    for family, members in grouped(rows, 1):
        e = estimate(members, group=family)
        kind = "Undecided at this number of items"
        if e.interval is not None and e.interval.low >= CAN:
            kind = "Can"
        elif e.interval is not None and e.interval.high < CANNOT:
            kind = "Cannot"
        found[kind].append(f"{family} ({_number(e)} {_interval(e)}, n={e.n})")
    lines = [f"- {kind}: {', '.join(members)}" for kind, members in found.items() if members]
    return [f'Share of held-out problems answered correctly; "can" = the whole interval is at or above {CAN:.0%}.', "", *lines]


def _number(e: Estimate) -> str:
    return f"{e.value:.1%}" if e.unit == "share" else f"{e.value:.3f}" + (" bits per byte" if e.unit == "bits per byte" else "")


def _interval(e: Estimate) -> str:
    if e.interval is None:
        return "(none: too few items)"
    low, high = (f"{x:.1%}" if e.unit == "share" else f"{x:.3f}" for x in e.interval[1:])
    return f"[{low}, {high}]"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A Markdown table and a blank line; bars inside cells are escaped."""
    body = [[cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in rows]
    return ["| " + " | ".join(r) + " |" for r in ([*head], ["---"] * len(head), *body)] + [""]
