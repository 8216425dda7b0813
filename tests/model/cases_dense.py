"""Dense families at toy size, every knob loud."""

from __future__ import annotations

from typing import Any

from tests.model.parity import BASE, Case

_LLAMA3 = {"factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 3.0}
LLAMA3 = {"rope_type": "llama3", "rope_theta": 40.0, **_LLAMA3}
YARN = {"rope_type": "yarn", "rope_theta": 40.0, "factor": 4.0, "original_max_position_embeddings": 64, "beta_fast": 2.0, "beta_slow": 0.5}
PLAIN = {"rope_type": "default", "rope_theta": 40.0}
LINEAR = {"rope_type": "linear", "rope_theta": 60.0, "factor": 3.0}

OLDER: dict[str, dict[str, Any]] = {
    "llama 3.2": {
        "model_type": "llama",
        "pretraining_tp": 1,
        "mlp_bias": False,
        "rope_scaling": {**_LLAMA3, "original_max_position_embeddings": 16, "rope_type": "llama3"},
        "rope_theta": 40.0,
        "tie_word_embeddings": True,
    },
    "qwen 2.5": {
        "model_type": "qwen2",
        "max_window_layers": 1,
        "rope_scaling": {"factor": 4.0, "original_max_position_embeddings": 16, "type": "yarn"},
        "rope_theta": 40.0,
        "sliding_window": 4,
        "tie_word_embeddings": False,
        "use_mrope": False,
        "use_sliding_window": False,
    },
    "olmo 3": {
        "model_type": "olmo3",
        "layer_types": ["sliding_attention", "full_attention"],
        "rope_scaling": {
            "attention_factor": 1.2079441541679836,
            "factor": 8.0,
            "original_max_position_embeddings": 16,
            "rope_type": "yarn",
        },
        "rope_theta": 500000,
        "sliding_window": 4,
        "tie_word_embeddings": False,
    },
    "gemma 2": {
        "model_type": "gemma2",
        "attn_logit_softcapping": 2.0,
        "cache_implementation": "hybrid",
        "final_logit_softcapping": 3.0,
        "head_dim": 16,
        "hidden_act": "gelu_pytorch_tanh",
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": 7,
        "rope_theta": 40.0,
        "sliding_window": 4,
    },
    "gemma 3": {
        "model_type": "gemma3_text",
        "attn_logit_softcapping": None,
        "cache_implementation": "hybrid",
        "final_logit_softcapping": None,
        "head_dim": 16,
        "hidden_activation": "gelu_pytorch_tanh",
        "num_hidden_layers": 4,
        "query_pre_attn_scalar": 7,
        "rope_local_base_freq": 30,
        "rope_scaling": {"factor": 3.0, "rope_type": "linear"},
        "rope_theta": 60,
        "sliding_window": 4,
        "sliding_window_pattern": 3,
    },
}
"""config.json as the hub holds it, written before rope_parameters was, over `OLD_BASE`."""

OLD_BASE = BASE | {"num_hidden_layers": 2, "torch_dtype": "float32", "transformers_version": "4.45.0.dev0", "use_cache": True}

CASES = (
    Case("llama", "llama", {"num_hidden_layers": 2, "rope_parameters": {**LLAMA3, "original_max_position_embeddings": 16}}),
    Case("qwen2", "qwen2", {"num_hidden_layers": 2, "rope_parameters": PLAIN}),
    Case("qwen3", "qwen3", {"num_hidden_layers": 2, "head_dim": 16, "rope_parameters": YARN}),
    Case("qwen3_tied", "qwen3", {"num_hidden_layers": 2, "head_dim": 12, "rope_parameters": PLAIN, "tie_word_embeddings": True}),
    Case("olmo2", "olmo2", {"num_hidden_layers": 2, "rope_parameters": PLAIN}),
    Case(
        "olmo3",
        "olmo3",
        {"num_hidden_layers": 4, "sliding_window": 5, "rope_parameters": {"full_attention": YARN, "sliding_attention": PLAIN}},
    ),
    Case(
        "gemma2",
        "gemma2",
        {
            "num_hidden_layers": 2,
            "head_dim": 16,
            "sliding_window": 5,
            "query_pre_attn_scalar": 7,
            "attn_logit_softcapping": 2.0,
            "final_logit_softcapping": 3.0,
            "rope_parameters": PLAIN,
        },
    ),
    Case(
        "gemma3",
        "gemma3_text",
        {
            "num_hidden_layers": 6,
            "head_dim": 16,
            "sliding_window": 5,
            "query_pre_attn_scalar": 7,
            "rope_parameters": {"full_attention": LINEAR, "sliding_attention": PLAIN},
        },
    ),
)
