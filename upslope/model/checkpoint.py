"""The checkpoint artifact: a model, its tokenizer, and what else a later stage may need, in one folder.

weights/            a folder that `transformers` loads: config.json, model.safetensors, generation_config.json, tokenizer files
model.json          the ModelConfig
head.safetensors    a scalar reward head (reward models only)
state/              optimizer state (training stages only; `Continue` reads it)
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Self

from upslope.config import UsageError, dump, validated
from upslope.machine.files import atomic, read_json, write_json
from upslope.machine.stage import Artifact
from upslope.model.config import ModelConfig

if TYPE_CHECKING:
    from upslope.model.heads import ScalarHead
    from upslope.model.transformer import Transformer
    from upslope.tokens.tokenizer import Tokenizer


class Checkpoint(Artifact):
    """A trained (or imported, or merged) model."""

    @property
    def weights(self) -> Path:
        """The Hugging Face folder."""
        return self.path / "weights"

    @property
    def state(self) -> Path:
        """The folder of optimizer state; it exists only where a training stage left one."""
        return self.path / "state"

    def config(self) -> ModelConfig:
        """The model's description."""
        file = self.path / "model.json"
        if not file.is_file():
            raise UsageError(f"{self.path.name!r} is no checkpoint: no model.json\nway out: bring outside weights in by a stage 'import'")
        return validated(ModelConfig, read_json(file), "model.json")

    def model(self) -> Transformer:
        """The model in float32, in evaluation mode."""
        from upslope.model.weights import load_weights

        return load_weights(self.config(), self.weights)

    def tokenizer(self) -> Tokenizer:
        """The tokenizer saved with the weights."""
        from upslope.tokens.tokenizer import Tokenizer

        return Tokenizer.load(self.weights)

    def reward_head(self) -> ScalarHead:
        """The scalar head of a reward model; UsageError where there is none."""
        from safetensors.torch import load_file

        from upslope.model.heads import ScalarHead

        file = self.path / "head.safetensors"
        if not file.is_file():
            raise UsageError("this checkpoint has no reward head (head.safetensors)\nway out: give the output of a 'reward_model' stage")
        head = ScalarHead(self.config().d_model)
        head.load_state_dict(load_file(file))
        return head

    @classmethod
    def write(cls, out: Path, model: Transformer, tokenizer: Tokenizer | None, head: ScalarHead | None = None) -> Self:
        """Writes the artifact's files into `out`; equal weights give equal bytes."""
        from safetensors.torch import save_file

        from upslope.model.weights import save_weights

        save_weights(model, tokenizer, out / "weights")
        if head is not None:
            with atomic(out / "head.safetensors") as file:
                save_file({k: v.detach().float().cpu().contiguous() for k, v in head.state_dict().items()}, file)
        write_json(out / "model.json", dump(model.config))
        return cls.load(out)
