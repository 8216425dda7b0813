"""`upslope presets`: recipes, and the labs' models with sizes, sources and guesses."""

from __future__ import annotations

import inspect
import json
from typing import Any

from upslope.cli.tables import emit, table
from upslope.config import Config, dump


def show(name: str | None, as_json: bool) -> None:
    """Lists all, or prints one in full."""
    from upslope.recipes.labs import PRESETS
    from upslope.recipes.load import presets

    if name is None:
        _list(as_json)
    elif (key := name.replace("-", "_")) in PRESETS:
        _lab(key, as_json)
    elif key in presets():
        _recipe(key, as_json)
    else:
        from upslope.recipes.load import load

        load(name)  # refuses, with the nearest names


def _list(as_json: bool) -> None:
    from upslope.model.cost import published
    from upslope.recipes.labs import PRESETS, get
    from upslope.recipes.labs.lab import kinds
    from upslope.recipes.load import presets

    def about(function: object) -> str:
        return (inspect.getdoc(function) or "").split("\n")[0]

    labs = {n: get(n) for n in PRESETS}
    sizes = {n: published(lab.model) for n, lab in labs.items()}
    if as_json:
        rest = [
            {
                "name": n,
                "lab": lab.lab,
                "title": lab.title,
                "about": about(PRESETS[n]),
                "total": sizes[n][0],
                "active": sizes[n][1],
                "parts": kinds(lab.model).split(", "),
                "guesses": len(lab.guesses),
            }
            for n, lab in labs.items()
        ]
        emit([*({"name": n, "about": about(f)} for n, f in sorted(presets().items())), *rest])
        return
    print(table([(n, about(f)) for n, f in sorted(presets().items())]))
    print("\nlabs (a size must be given: upslope run NAME --size tiny)\n")
    rows = [(n, _billions(sizes[n][0]), _billions(sizes[n][1]), len(lab.guesses) or "", kinds(lab.model)) for n, lab in labs.items()]
    print(table(rows, ("name", "total", "active", "guesses", "parts"), right=(1, 2, 3)))


def _billions(count: float) -> str:
    return f"{count / 1e9:,.1f}B"


def _recipe(key: str, as_json: bool) -> None:
    from upslope.recipes.load import load, presets

    function = presets()[key]
    needs = [p for p, q in inspect.signature(function).parameters.items() if q.default is inspect.Parameter.empty]
    if needs:
        print(f"{key} takes {', '.join('--' + n for n in needs)}\n\n{inspect.getdoc(function)}")
        return
    body = dump(load(key).recipe)
    emit(body) if as_json else print(table([(p, json.dumps(v, ensure_ascii=False)) for p, v in flatten(body)]))


def _lab(key: str, as_json: bool) -> None:
    from upslope.model.cost import cache_elements, flops, mtp, published, weight_bytes
    from upslope.recipes.labs import PRESETS, get
    from upslope.recipes.labs.recipe import price

    lab = get(key)
    total, active = published(lab.model)
    if as_json:
        training = {k: dump(v) if isinstance(v, Config) else v for k, v in lab.training._asdict().items()}
        head = {k: getattr(lab, k) for k in ("name", "lab", "title", "date", "mark", "source")}
        facts = [f._asdict() for f in lab.facts]
        body = {"total": total, "active": active, "published": lab.published._asdict(), "training": training, "facts": facts}
        emit({**head, **body, "model": dump(lab.model)})
        return
    print(f"{lab.title} ({lab.lab}, {lab.date}): {(inspect.getdoc(PRESETS[key]) or '').split(chr(10))[0]}\n")
    stated = f"{lab.published.total:g}B" + (f", {lab.published.active:g}B active" if lab.published.active else "")
    rows = [
        ("parameters", f"{_billions(total)}, {_billions(active)} active (stated: {stated})"),
        *([("MTP", f"{_billions(mtp(lab.model).total)} more")] if lab.model.mtp else []),
        ("weights", f"{weight_bytes(lab.model, 'bf16') / 1e9:,.0f} GB in bf16, {weight_bytes(lab.model, 'fp8') / 1e9:,.0f} GB in fp8"),
        ("forward", f"{flops(lab.model, 4096) / 1e9:,.1f} GFLOPs a token at 4K, {flops(lab.model, 131_072) / 1e9:,.1f} at 128K"),
        ("cache", f"{cache_elements(lab.model, 131_072) * 2 / 2**30:,.2f} GiB a sequence of 128K in bf16"),
        *lab.training.said().items(),
        ("source", f"[{lab.mark}] {lab.source}"),
    ]
    print(table(rows))
    if lab.facts:
        print("\nnumbers with a source of their own (C confirmed, M from memory, D derived, ? a guess)\n")
        print(table([(f"[{f.mark}]", f.what, f.source) for f in lab.facts]))
    print("\nmodel\n")
    print(table([(p, json.dumps(v, ensure_ascii=False)) for p, v in flatten(dump(lab.model))]))
    print(f"\n{price(lab)}\n\nupslope run {key} --size tiny     the same knobs on two cores")


def flatten(value: Any, prefix: str = "") -> list[tuple[str, Any]]:
    """Leaves of nested mappings by dotted path."""
    if isinstance(value, dict) and value:
        return [p for k, v in value.items() for p in flatten(v, f"{prefix}.{k}" if prefix else str(k))]
    return [(prefix, value)]
