"""`upslope explain`: a knob's meaning, default, source, and who sets it to what."""

from __future__ import annotations

from upslope.cli.tables import emit
from upslope.recipes.knobs import kind_of, lookup, uses

SHOWN = 6  # homes of one name


def show(name: str, as_json: bool) -> None:
    """Prints what is known of a knob. UsageError with the nearest names where there is none."""
    found = lookup(name)
    if as_json:
        body = [
            {
                "path": k.path,
                "home": kind_of(k.cls) or k.cls.__name__,
                "meaning": k.meaning,
                "type": k.type,
                "default": k.default,
                "source": k.source,
                "labs": {value: list(names) for value, names in uses(k.cls, k.field).items()},
            }
            for k in found
        ]
        emit(body)
        return
    for knob in found[:SHOWN]:
        print(f"{knob.path}  ({knob.type}{', default ' + knob.default if knob.default else ', must be given'})")
        print(f"  {knob.meaning or 'see the class ' + knob.cls.__name__}")
        if knob.source:
            print(f"  source: {knob.source}")
        if knob.cls.__doc__:
            print(f"  part of {kind_of(knob.cls) or knob.cls.__name__}: {' '.join(knob.cls.__doc__.split('.')[0].split())}")
        for value, names in sorted(uses(knob.cls, knob.field).items(), key=lambda p: (-len(p[1]), p[0])):
            print(f"  {value}: {', '.join(names)}")
        print()
    if len(found) > SHOWN:
        print(f"and {len(found) - SHOWN} more: {', '.join(k.path for k in found[SHOWN:][:4])} ...")
