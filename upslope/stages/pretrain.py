"""Next-token training on a stream of documents. Mid-training is a second one: other rows, other mixture, init = load."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from upslope.config import Duration, Input, Neutral, Wants
from upslope.machine.stage import Cost
from upslope.train.init import Init, Scratch, materialise, restore, write_checkpoint
from upslope.train.stage import Training

if TYPE_CHECKING:
    from upslope.machine.context import Context
    from upslope.model.checkpoint import Checkpoint


class Pretrain(Training):
    """Trains on rows of `row_length` tokens drawn from token shards by a mixture; attention stays inside documents.

    tokenizer: for init kind "scratch" only; a checkpoint brings its own. rows: rows a step. z_loss: weight of the squared
    log-normaliser of the logits. length: "tok" counts tokens read, "ep" passes over the shards' tokens of the mixture's
    sources. packing: how documents share rows (`tokens.stream.Stream`).
    """

    kind: ClassVar[str] = "pretrain"
    code: ClassVar[tuple[str, ...]] = (*Training.code, "upslope.tokens")

    init: Init
    tokenizer: Annotated[Input | None, Wants("Tokenizer")] = None
    shards: Annotated[tuple[Input, ...], Wants("TokenShards")]
    mixture: Annotated[Input, Wants("Mixture")]
    length: Duration = Duration.of("20tpp")
    rows: int = Field(default=32, ge=1)
    row_length: int = Field(default=1024, ge=2)
    packing: Annotated[Literal["concat", "best_fit"], Neutral("concat")] = "concat"
    z_loss: float = Field(default=1e-5, ge=0)

    @model_validator(mode="after")
    def _one_tokenizer(self) -> Self:
        if isinstance(self.init, Scratch) != (self.tokenizer is not None):
            raise ValueError("tokenizer: needed with init kind 'scratch', and only there (a checkpoint brings its own)")
        return self

    def cost(self, inputs: Mapping[str, Any]) -> Cost:
        """Floating-point operations of a run from scratch whose length does not depend on the data; else nothing is known."""
        vocab = getattr(inputs.get("tokenizer"), "vocab_size", 0)
        if not isinstance(self.init, Scratch) or self.length.unit == "ep" or not (self.init.model.vocab or vocab):
            return Cost()
        model = self.init.model if self.init.model.vocab else self.init.model.replace(vocab=vocab)
        per_step = self.rows * self.row_length
        return Cost(flops=3 * model.flops(self.row_length) * per_step * self.length.steps(per_step, params=model.params()))

    def run(self, ctx: Context) -> Checkpoint:
        """Trains and writes a checkpoint with its optimizer state."""
        from upslope.tokens.mixture import Mixture
        from upslope.tokens.shards import TokenShards
        from upslope.tokens.stream import Stream
        from upslope.tokens.tokenizer import Tokenizer
        from upslope.train.build import of_stream
        from upslope.train.losses import Imitate

        with ctx.events.state("load"):
            given = ctx.open(self.tokenizer, Tokenizer) if self.tokenizer is not None else None
            model, tokenizer = materialise(self.init, ctx, given)
            if self.row_length > model.config.context:
                model.config = model.config.replace(context=self.row_length)
            trainer = self.trainer(ctx, model)
            restore(self.init, ctx, trainer)
            shards = [ctx.open(s, TokenShards) for s in self.shards]
            mixture = ctx.open(self.mixture, Mixture)
            held = sum(len(s.tokens(name)) for s in shards for name in s.sources() if name in mixture.sources)
            per_step = self.rows * self.row_length
            parameters = sum(p.numel() for p in model.parameters())
            steps = self.length.steps(per_step, tokens_per_epoch=held, params=parameters)
            stream = Stream(shards, mixture, self.row_length, ctx.seed_of("stream"), total=steps * self.rows, packing=self.packing)
        history = self.fitted(
            ctx, trainer, lambda k: of_stream(stream, k, self.rows), Imitate(self.z_loss), steps, self.row_length, steps * per_step
        )
        epochs = {name: round(n, 4) for name, n in sorted(stream.epochs(steps * self.rows).items())}
        ctx.fact(epochs=epochs, packing={name: p._asdict() for name, p in sorted(stream.packed().items())})
        ctx.say(f"{history.tokens / 1e6:.2f}M tokens through {parameters / 1e6:.2f}M parameters: {history.last('nll'):.3f} nats a token")
        return write_checkpoint(ctx.out, trainer, tokenizer)
