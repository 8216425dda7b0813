"""upslope: the frontier-LLM recipe as one program, and a machine that tells you which change to keep.

    import upslope as us
    r = us.recipe("tiny")                       # a Recipe; us.recipe("mine.toml"), us.recipe("tiny", sets=["seed=1"])
    us.plan(r)                                  # what would be built, continued and reused
    run = us.run(r, store="store")              # a Run; shows itself in a notebook
    us.open("tiny-1").metrics("climb/reward")   # (steps, values)
    us.load("tiny-1").generate("sort: 9 3 7")   # a Model from a run, RUN/STAGE or an HF folder

Importing this loads no torch; names resolve when used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from upslope.api import Model as Model
    from upslope.api import Run as Run
    from upslope.api import load as load
    from upslope.api import open as open
    from upslope.api import plan as plan
    from upslope.api import recipe as recipe
    from upslope.api import run as run

__version__ = "0.1.0"
__all__ = ["Model", "Run", "__version__", "load", "open", "plan", "recipe", "run"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        import importlib

        return getattr(importlib.import_module("upslope.api"), name)
    raise AttributeError(f"module 'upslope' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
