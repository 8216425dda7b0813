"""checkpoint: a model of this package, on its own engine."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from upslope.chat.model import ChatModel, Speaker
from upslope.config import Exec, Input, Source, UsageError, Wants
from upslope.machine.context import Context
from upslope.precision.config import Numerics


class Checkpoint(Speaker):
    """A checkpoint of this recipe, or a folder in Hugging Face form with weights and tokenizer; one of the two.

    max_new, temperature, top_p, top_k: how replies are sampled (temperature 0 = greedy). numerics: of the forward pass. slots: replies in
    flight at once.
    """

    kind: ClassVar[str] = "checkpoint"

    checkpoint: Annotated[Input | None, Wants("Checkpoint")] = None
    folder: Source | None = None
    max_new: int = Field(default=256, ge=1)
    temperature: float = Field(default=0.0, ge=0)
    top_p: float = Field(default=1.0, gt=0, le=1)
    top_k: int = Field(default=0, ge=0)
    numerics: Numerics = "fp32"
    slots: Annotated[int, Exec(), Field(ge=1)] = 64

    def bind(self, ctx: Context) -> Speaker:
        """The same with a folder and its digest in place of the input. UsageError unless exactly one is named."""
        from upslope.machine.files import digest_file, digest_path
        from upslope.model.checkpoint import Checkpoint as Artifact

        if (self.checkpoint is None) == (self.folder is None):
            raise UsageError("speaker checkpoint: name a stage in `checkpoint`, or a `folder`; one of the two")
        if self.checkpoint is None:
            return self
        made = ctx.open(self.checkpoint, Artifact)
        digest = digest_file(made.path / "model.json") + digest_path(made.weights)
        return self.replace(checkpoint=None, folder=Source(uri=str(made.path), digest=digest))

    def open(self) -> ChatModel:
        """The model with its chat format."""
        from upslope.chat.render import ChatML
        from upslope.generate.chat import EngineChat
        from upslope.generate.engine import LocalEngine, Sampling
        from upslope.model.checkpoint import Checkpoint as Artifact
        from upslope.model.weights import import_hf
        from upslope.tokens.tokenizer import Tokenizer

        if self.folder is None:
            raise UsageError("speaker checkpoint: no `folder`\nway out: name one, or run it in a stage, which finds that of `checkpoint`")
        path = self.folder.path()
        made = Artifact(path) if (path / "model.json").is_file() else None
        model, tokenizer = (made.model(), made.tokenizer()) if made is not None else (import_hf(path), Tokenizer.load(path))
        engine = LocalEngine(model, tokenizer, slots=self.slots, numerics=self.numerics)
        sampling = Sampling(max_new=self.max_new, temperature=self.temperature, top_p=self.top_p, top_k=self.top_k)
        return EngineChat(engine, ChatML(tokenizer), sampling)
