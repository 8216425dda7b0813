"""`docs/models.md`, generated: presets and knobs side by side. `python -m upslope.recipes.labs.page > docs/models.md` writes it anew."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence

from upslope.config import Config
from upslope.model.config import HyperConnections, ModelConfig
from upslope.model.cost import cache_elements, flops, published
from upslope.recipes.knobs import Knob, kind_of, model_knobs, uses
from upslope.recipes.labs import PRESETS, get
from upslope.recipes.labs.lab import Lab, parts

INTRO = """# Models: knobs and presets

Generated from the code by `python -m upslope.recipes.labs.page`; do not edit. A model is a pattern of named blocks, a block is
`Layer(mixer, ffn, norm, residual)`, and every lab's model below is one `ModelConfig`. Each family that `transformers` 5.23.0 has a
class for is compared with it in `tests/model/test_parity.py`: logits, gradients, folders both ways, greedy tokens, and one mutant per
knob that must be noticed.

A preset runs at a size that you name (`upslope run deepseek_v3 --size tiny`): dimensions shrink, knobs stay. Marks: C confirmed in
released code, a configuration or a report; M from memory of the paper; D derived; ? a guess, listed at the end. `upslope presets NAME`
shows every number, `upslope explain KNOB` every knob. Parameters are counted as labs do: without MTP, an untied embedding
twice. Under Knobs, "the others" are all other presets that have the part.
"""

LONG = ("blocks", "pattern")  # said under Parts


def page() -> str:
    """The whole page."""
    labs = [get(name) for name in PRESETS]
    sections = {"Presets": _presets(labs), "Parts": _parts(labs), "Training": _training(labs), "Knobs": _knobs(), "Guesses": _guesses(labs)}
    return INTRO + "".join(f"\n## {title}\n\n{body}\n" for title, body in sections.items())


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join([*lines, *("| " + " | ".join(c.replace("|", "\\|").replace("\n", " ") for c in row) + " |" for row in rows)])


def _presets(labs: Sequence[Lab]) -> str:
    head = (
        "preset",
        "date",
        "layers",
        "width",
        "total / active, B",
        "stated",
        "forward GFLOPs a token at 4K, 128K",
        "cache of 128K, GiB bf16",
        "context",
        "tokens",
        "guesses",
        "mark, source",
    )
    rows = []
    for lab in labs:
        m = lab.model
        total, active = published(m)
        stated = f"{lab.published.total:g}" + (f" / {lab.published.active:g}" if lab.published.active else "")
        rows.append(
            (
                f"`{lab.name}`",
                lab.date,
                str(m.depth),
                str(m.d_model),
                f"{total / 1e9:.1f} / {active / 1e9:.1f}",
                stated,
                f"{flops(m, 4096) / 1e9:,.1f}, {flops(m, 131_072) / 1e9:,.1f}",
                f"{cache_elements(m, 131_072) * 2 / 2**30:.2f}",
                f"{m.context:,}",
                lab.training.tokens,
                str(len(lab.guesses) or ""),
                f"{lab.mark}, {lab.source}",
            )
        )
    return _table(head, rows)


def _parts(labs: Sequence[Lab]) -> str:
    """What each preset's blocks are made of."""
    rows = []
    for lab in labs:
        blocks = lab.model.blocks.values()
        mixers, ffns = parts(lab.model)
        norms = dict.fromkeys(b.norm.kind for b in blocks)
        streams = dict.fromkeys(
            f"hyper x{b.residual.streams}" if isinstance(b.residual, HyperConnections) else b.residual.kind for b in blocks
        )
        mtp = lab.model.mtp
        rows.append(
            (f"`{lab.name}`", "; ".join(mixers), "; ".join(ffns), ", ".join(norms), ", ".join(streams), f"{mtp.depth}" if mtp else "")
        )
    return _table(("preset", "mixers", "channel mixers", "norm", "residual", "MTP"), rows)


def _training(labs: Sequence[Lab]) -> str:
    head = ("tokens", "batch", "rate", "optimizer", "precision", "note", "optim", "schedule")
    rows = [(f"`{lab.name}`", *(lab.training.said().get(h, "") for h in head), _training_marks(lab)) for lab in labs]
    return _table(("preset", *head, "mark"), rows)


def _training_marks(lab: Lab) -> str:
    """The mark of all, then those of single facts."""
    own = {f.what.partition(".")[2]: f.mark for f in lab.facts if f.what.split(".")[0] == "training"}
    return ", ".join([own.pop("", lab.mark), *(f"{what} {mark}" for what, mark in own.items())])


def _knobs() -> str:
    homes: dict[type[Config], dict[str, Knob]] = {}
    for knob in model_knobs():
        homes.setdefault(knob.cls, {}).setdefault(knob.field, knob)
    tables = []
    for cls, knobs in homes.items():
        name = kind_of(cls) if cls is not ModelConfig else "model"
        first = " ".join((cls.__doc__ or "").split("\n\n")[0].split())
        rows = [(f"`{k.field}`", k.meaning, k.type, k.default, "" if k.field in LONG else _uses(k)) for k in knobs.values()]
        table = _table(("knob", "meaning", "type", "default", "labs"), rows)
        tables.append(f"### {cls.__name__}" + (f" (`{name}`)" if name else "") + f"\n\n{first}\n\n{table}\n")
    return "\n".join(tables)


def _uses(knob: Knob) -> str:
    """Value: presets, most used first, which are "the others" where no preset has two values."""
    found = sorted(uses(knob.cls, knob.field).items(), key=lambda p: (-len(p[1]), p[0]))
    if len(found) < 2:
        return "" if not found else f"{found[0][0]}: all that have this part"
    apart = set(found[0][1]).isdisjoint(n for _, names in found[1:] for n in names) and len(found[0][1]) > 3
    return "; ".join(f"{value}: {'the others' if apart and not i else ', '.join(names)}" for i, (value, names) in enumerate(found))


def _guesses(labs: Sequence[Lab]) -> str:
    return _table(("preset", "what", "why"), [(f"`{lab.name}`", f"`{f.what}`", f.source) for lab in labs for f in lab.guesses])


if __name__ == "__main__":
    sys.stdout.write(page())
