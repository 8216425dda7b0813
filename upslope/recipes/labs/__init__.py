"""The labs' published models, one function each: real dimensions, sources, guesses marked. `get(name)` finds one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from difflib import get_close_matches
from functools import cache

from upslope.config import UsageError
from upslope.recipes.labs import ai2, alibaba, deepseek, google, meta, microsoft, minimax, moonshot, nvidia, openai, tencent, xiaomi, zhipu
from upslope.recipes.labs.lab import Fact, Lab, Published, Training

PRESETS: Mapping[str, Callable[[], Lab]] = {
    f.__name__: f
    for f in (
        microsoft.mai_thinking_1,
        deepseek.deepseek_v3,
        deepseek.deepseek_r1,
        deepseek.deepseek_v32,
        deepseek.deepseek_v4_pro,
        deepseek.deepseek_v4_flash,
        alibaba.qwen3_235b,
        moonshot.kimi_k2,
        zhipu.glm_45,
        zhipu.glm_5,
        zhipu.glm_52,
        meta.llama3_8b,
        meta.llama3_70b,
        meta.llama3_405b,
        google.gemma2_2b,
        google.gemma3_27b,
        xiaomi.mimo_7b,
        tencent.hunyuan_large,
        minimax.minimax_m1,
        minimax.minimax_m2,
        ai2.olmo2_7b,
        ai2.olmo2_13b,
        ai2.olmo2_32b,
        nvidia.nemotron3_nano,
        nvidia.nemotron3_super,
        nvidia.nemotron3_ultra,
        openai.gpt_oss_20b,
        openai.gpt_oss_120b,
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
