"""Dense families at toy size, every knob loud."""

from __future__ import annotations

from tests.model.parity import Case

LLAMA3 = {"rope_type": "llama3", "rope_theta": 40.0, "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 3.0}
YARN = {"rope_type": "yarn", "rope_theta": 40.0, "factor": 4.0, "original_max_position_embeddings": 64, "beta_fast": 2.0, "beta_slow": 0.5}
PLAIN = {"rope_type": "default", "rope_theta": 40.0}
LINEAR = {"rope_type": "linear", "rope_theta": 60.0, "factor": 3.0}

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
