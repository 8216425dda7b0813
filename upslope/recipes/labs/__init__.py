"""The labs' published models, one function each: real dimensions, sources, guesses marked. `get(name)` finds one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from difflib import get_close_matches
from functools import cache

from upslope.config import UsageError
from upslope.recipes.labs import chinese, deepseek, western
from upslope.recipes.labs.lab import Fact, Lab, Published, Training

PRESETS: Mapping[str, Callable[[], Lab]] = {
    f.__name__: f
    for f in (
        western.mai_thinking_1,
        deepseek.deepseek_v3,
        deepseek.deepseek_r1,
        deepseek.deepseek_v32,
        deepseek.deepseek_v4_pro,
        deepseek.deepseek_v4_flash,
        chinese.qwen3_235b,
        chinese.kimi_k2,
        chinese.glm_45,
        chinese.glm_5,
        chinese.glm_52,
        western.llama3_8b,
        western.llama3_70b,
        western.llama3_405b,
        western.gemma2_2b,
        western.gemma3_27b,
        chinese.mimo_7b,
        chinese.hunyuan_large,
        chinese.minimax_m1,
        chinese.minimax_m2,
        western.olmo2_7b,
        western.olmo2_13b,
        western.olmo2_32b,
        western.nemotron3_nano,
        western.nemotron3_super,
        western.nemotron3_ultra,
        western.gpt_oss_20b,
        western.gpt_oss_120b,
    )
}


@cache
def get(name: str) -> Lab:
    """A preset by name; UsageError with the nearest names."""
    if name not in PRESETS:
        near = get_close_matches(name, PRESETS, 3, 0.4)
        raise UsageError(f"no preset {name!r}\n{'did you mean: ' + ', '.join(near) if near else 'presets: ' + ', '.join(PRESETS)}")
    return PRESETS[name]()


__all__ = ["PRESETS", "Fact", "Lab", "Published", "Training", "get"]
