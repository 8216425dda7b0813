"""Where a training stage's weights come from: drawn, read from a checkpoint, or continued with the optimizer's state."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from upslope.config import Config, Input, Neutral, UsageError, Wants
from upslope.model.config import ModelConfig

if TYPE_CHECKING:
    from upslope.machine.context import Context
    from upslope.model.checkpoint import Checkpoint
    from upslope.model.transformer import Transformer
    from upslope.tokens.tokenizer import Tokenizer
    from upslope.train.trainer import Trainer


class Scratch(Config):
    """New weights, drawn per parameter name from the stage's seed. The vocabulary is the tokenizer's."""

    kind: Literal["scratch"] = "scratch"
    model: ModelConfig


class Load(Config):
    """Weights of a checkpoint; a new optimizer.

    model: the description to go on as, where it is another than the checkpoint's (an indexer, a module of MTP or a rope scaling added,
    an indexer's stage changed): what the checkpoint has must fit, what it lacks is drawn from the stage's seed. Its vocabulary may be 0.
    """

    kind: Literal["load"] = "load"
    checkpoint: Annotated[Input, Wants("Checkpoint")]
    model: Annotated[ModelConfig | None, Neutral(None)] = None


class Continue(Config):
    """Weights and optimizer state of a checkpoint: the branch point of schedules with segments (WSD-S, extensions)."""

    kind: Literal["continue"] = "continue"
    checkpoint: Annotated[Input, Wants("Checkpoint")]


Init = Annotated[Scratch | Load | Continue, Field(discriminator="kind")]
From = Annotated[Load | Continue, Field(discriminator="kind")]


def materialise(init: Scratch | Load | Continue, ctx: Context, tokenizer: Tokenizer | None = None) -> tuple[Transformer, Tokenizer]:
    """The model that a stage starts from, in float32, and its tokenizer.

    tokenizer: needed with Scratch; with a checkpoint its own is used. UsageError where a model's own vocabulary does not
    fit the tokenizer.
    """
    from upslope.model.init import initialise
    from upslope.model.transformer import Transformer

    if not isinstance(init, Scratch):
        checkpoint = _open(init, ctx)
        model = checkpoint.model()
        if isinstance(init, Load) and init.model is not None:
            wanted = init.model if init.model.vocab else init.model.replace(vocab=model.config.vocab)
            model = carried_over(model, wanted, ctx.seed_of("init"))
        return model, checkpoint.tokenizer()
    if tokenizer is None:
        raise UsageError("init kind 'scratch' needs a tokenizer\nway out: give the stage a tokenizer input")
    config = init.model if init.model.vocab else init.model.replace(vocab=tokenizer.vocab_size)
    if config.vocab < tokenizer.vocab_size:
        raise UsageError(f"init.model.vocab = {config.vocab}: the tokenizer has {tokenizer.vocab_size} tokens\nway out: leave it at 0")
    return initialise(Transformer(config), ctx.seed_of("init")), tokenizer


def carried_over(model: Transformer, wanted: ModelConfig, seed: int) -> Transformer:
    """A model of another description with the tensors of this one; those that it lacks are drawn. UsageError names what finds no place."""
    import torch

    from upslope.model.init import initialise
    from upslope.model.transformer import Transformer

    grown = initialise(Transformer(wanted), seed)
    have, need = model.tensors(), grown.tensors()
    lost = [f"{n} {tuple(t.shape)}" for n, t in have.items() if n not in need or need[n].shape != t.shape]
    if lost:
        raise UsageError(
            f"init.model has no place for {len(lost)} tensors of the checkpoint: {', '.join(lost[:3])}{', ...' if len(lost) > 3 else ''}\n"
            "way out: start from the checkpoint's description (model.json) and only add to it"
        )
    with torch.no_grad():
        for name, tensor in have.items():
            need[name].copy_(tensor)
    return grown.eval()


def restore(init: Scratch | Load | Continue, ctx: Context, trainer: Trainer) -> None:
    """Gives a trainer the optimizer state of the checkpoint that it continues; nothing for the other kinds."""
    if isinstance(init, Continue):
        from upslope.train.resume import load_optimizer

        trainer.optimizer.load(load_optimizer(_open(init, ctx).state))


def write_checkpoint(out: Path, trainer: Trainer, tokenizer: Tokenizer) -> Checkpoint:
    """Writes the trained model, its scalar head if it has one, and the optimizer state, so that `Continue` works."""
    from upslope.model.checkpoint import Checkpoint
    from upslope.train.resume import save_optimizer

    save_optimizer(out / "state", trainer.optimizer.state())
    return Checkpoint.write(out, trainer.model, tokenizer, trainer.scalar)


def _open(init: Load | Continue, ctx: Context) -> Checkpoint:
    from upslope.model.checkpoint import Checkpoint

    return ctx.open(init.checkpoint, Checkpoint)
