"""The model as `transformers` sees it. Read as text by `model.bundle`, which puts it at the end of an exported modelling file."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput

from upslope.model.config import ModelConfig
from upslope.model.transformer import Transformer


class UpslopeConfig(PretrainedConfig):
    """config.json. upslope: the model as plain values, see `ModelConfig`."""

    model_type = "upslope"

    def __init__(self, upslope: dict[str, Any] | None = None, **kwargs: Any) -> None:
        kwargs = {**kwargs, "use_cache": False, "tie_word_embeddings": False}
        if upslope is not None:
            model = ModelConfig(**upslope)
            self.vocab_size, self.hidden_size, self.num_hidden_layers = model.vocab, model.d_model, model.depth
            self.max_position_embeddings = model.context
        self.upslope = upslope
        super().__init__(**kwargs)

    @property
    def model(self) -> ModelConfig:
        """The model's description. ValueError where config.json has none."""
        if self.upslope is None:
            raise ValueError("config.json: 'upslope' is missing")
        return ModelConfig(**self.upslope)


class UpslopeForCausalLM(PreTrainedModel, GenerationMixin):
    """A decoder-only language model. Weights stay in float32; for 16 bit arithmetic run it under `torch.autocast`."""

    config_class = UpslopeConfig
    base_model_prefix = "model"

    def __init__(self, config: UpslopeConfig) -> None:
        super().__init__(config)
        self.model = Transformer(config.model)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Nothing is drawn here: a weight that no file gave stays NaN."""

    def get_input_embeddings(self) -> nn.Module:
        """The embedding."""
        return self.model.embed

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, labels: Tensor | None = None, logits_to_keep: int = 0, **kwargs: Any
    ) -> CausalLMOutput:
        """input_ids (B, T) → logits (B, T, V), or of the last `logits_to_keep` columns alone.

        attention_mask (B, T): zero on padding, which may stand left or right; its logits are zero. labels (B, T): the ids again, -100
        where there is no loss; label t + 1 is predicted in column t. ValueError for other masks.
        """
        if self.model.embed.weight.dtype in (torch.bfloat16, torch.float16):
            raise ValueError("weights are kept in float32: load with dtype=torch.float32 and run under torch.autocast")
        rows, columns = input_ids.shape
        real = torch.ones_like(input_ids, dtype=torch.bool)
        if attention_mask is not None:
            if attention_mask.shape != input_ids.shape:
                raise ValueError(f"attention_mask {tuple(attention_mask.shape)}: must be as input_ids, {tuple(input_ids.shape)}")
            real = attention_mask != 0
            if not bool(real.any()) or bool(((real[:, 1:] != real[:, :-1]).sum(1) > 1).any()):
                raise ValueError("attention_mask: a row's tokens must be in one piece, with padding on its left or on its right")
        seg = real.any(1).long().cumsum(0)[:, None].expand(rows, columns)[real] - 1  # rows of padding alone are no segments
        hidden = self.model(input_ids[real], seg)
        kept = real.clone()
        if logits_to_keep:
            kept[:, :-logits_to_keep] = False
        flat = self.model.logits(hidden[kept[real]])
        logits = flat.new_zeros(rows, columns, flat.shape[-1]).masked_scatter(kept[..., None], flat)[:, -logits_to_keep:]
        loss = None
        if labels is not None:
            target = labels[:, 1:].masked_fill(~(real[:, 1:] & real[:, :-1]), -100)
            loss = F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), target.flatten())
        return CausalLMOutput(loss=loss, logits=logits)

    def prepare_inputs_for_generation(self, input_ids: Tensor, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """`generate` keeps no cache here: every step reads the whole text again, right for any mixture of layers and slow for long ones."""
        return {"input_ids": input_ids, "attention_mask": kwargs.get("attention_mask"), "logits_to_keep": 1}
