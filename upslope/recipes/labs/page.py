"""`docs/models.md`, generated: presets and knobs side by side. `python -m upslope.recipes.labs.page > docs/models.md` writes it anew."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence

from upslope.config import Config
from upslope.model.config import HyperConnections, ModelConfig, MoE
from upslope.model.cost import cache_elements, flops, published
from upslope.recipes.knobs import Knob, kind_of, model_knobs, uses
from upslope.recipes.labs import PRESETS, get
from upslope.recipes.labs.lab import Lab

INTRO = """# Models: knobs and presets

Generated from the code by `python -m upslope.recipes.labs.page`; do not edit. A model is a pattern of named blocks, a block is
`Layer(mixer, ffn, norm, residual)`, and every lab's model below is one `ModelConfig`. Each family that `transformers` 5.23.0 has a
class for is compared with it in `tests/model/test_parity.py`: logits, gradients, folders both ways, greedy tokens, and one mutant per
knob that must be noticed.

A preset runs at a size that you name (`upslope run deepseek_v3 --size tiny`): dimensions shrink, knobs stay. Marks: C confirmed in
released code, a configuration or a report; M from memory of the paper; D derived; ? a guess, listed at the end. `upslope presets NAME`
shows every number, `upslope explain KNOB` every knob.
"""


def page() -> str:
    """The whole page."""
    labs = [get(name) for name in PRESETS]
    parts = [INTRO, "## Presets\n", _presets(labs), "\n## Parts\n", _parts(labs), "\n## Knobs\n", _knobs(), "## Guesses\n", _guesses(labs)]
    return "\n".join(parts) + "\n"


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
        "GFLOPs a token at 4K, 128K",
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
        mixers = dict.fromkeys(_mixer(b.mixer) for b in blocks)
        ffns = dict.fromkeys(_ffn(b.ffn) for b in blocks)
        norms = dict.fromkeys(b.norm.kind for b in blocks)
        streams = dict.fromkeys(
            f"hyper x{b.residual.streams}" if isinstance(b.residual, HyperConnections) else b.residual.kind for b in blocks
        )
        mtp = lab.model.mtp
        rows.append(
            (f"`{lab.name}`", "; ".join(mixers), "; ".join(ffns), ", ".join(norms), ", ".join(streams), f"{mtp.depth}" if mtp else "")
        )
    return _table(("preset", "mixers", "channel mixers", "norm", "residual", "MTP"), rows)


def _mixer(mixer: Config) -> str:
    words = [str(getattr(mixer, "kind", ""))]
    if getattr(mixer, "heads", None):
        words.append(f"{mixer.heads}h")  # type: ignore[attr-defined]
    for name, say in (("kv_heads", "/{}"), ("window", " W={}"), ("softcap", " cap {}"), ("kv_latent", " latent {}")):
        if (value := getattr(mixer, name, None)) is not None:
            words.append(say.format(value))
    position = getattr(mixer, "position", None)
    words.append(f" {position.kind}" if position is not None else "")
    words.append(" sinks" if getattr(mixer, "sinks", False) else "")
    for name in ("qk_norm", "select", "history"):
        if (part := getattr(mixer, name, None)) is not None:
            words.append(f" {getattr(part, 'kind', name)}")
    return "".join(words)


def _ffn(ffn: Config) -> str:
    if isinstance(ffn, MoE):
        k, shared = ffn.router.select.k, " + shared" if ffn.shared else ""
        narrow = f" latent {ffn.latent}" if ffn.latent else ""
        balance = ", ".join(f"{b.kind}{' over ' + b.over if b.kind == 'aux' else ''}" for b in ffn.balance)
        return f"moe {k}/{ffn.experts}{shared}{narrow} {ffn.router.score} {ffn.router.select.kind}" + (f" ({balance})" if balance else "")
    return f"{getattr(ffn, 'kind', '')} {getattr(ffn, 'hidden', '')}".strip()


def _knobs() -> str:
    homes: dict[type[Config], dict[str, Knob]] = {}
    for knob in model_knobs():
        homes.setdefault(knob.cls, {}).setdefault(knob.field, knob)
    parts = []
    for cls, knobs in homes.items():
        name = kind_of(cls) if cls is not ModelConfig else "model"
        first = " ".join((cls.__doc__ or "").split("\n\n")[0].split())
        rows = [(f"`{k.field}`", k.meaning, k.type, k.default, _uses(k)) for k in knobs.values()]
        table = _table(("knob", "meaning", "type", "default", "labs"), rows)
        parts.append(f"### {cls.__name__}" + (f" (`{name}`)" if name else "") + f"\n\n{first}\n\n{table}\n")
    return "\n".join(parts)


def _uses(knob: Knob) -> str:
    """Up to three values, most used first, with a lab each."""
    found = sorted(uses(knob.cls, knob.field).items(), key=lambda p: (-len(p[1]), p[0]))
    shown = [f"{value[:40]}: {names[0]}{f' and {len(names) - 1} more' if len(names) > 1 else ''}" for value, names in found[:3]]
    return "; ".join(shown) + ("; ..." if len(found) > 3 else "")


def _guesses(labs: Sequence[Lab]) -> str:
    return _table(("preset", "what", "why"), [(f"`{lab.name}`", f"`{f.what}`", f.source) for lab in labs for f in lab.guesses])


if __name__ == "__main__":
    sys.stdout.write(page())
