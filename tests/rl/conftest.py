from collections.abc import Sequence
from pathlib import Path

import pytest

from upslope.model.checkpoint import Checkpoint
from upslope.model.config import dense
from upslope.model.init import initialise
from upslope.model.transformer import Transformer
from upslope.tasks.artifacts import Tasks
from upslope.tasks.task import Task
from upslope.tokens.tokenizer import Tokenizer, train_bpe

TEXTS = ["add: 12 + 7 = 19. user assistant system think say the secret. you are right\n\n"] * 20


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return train_bpe(TEXTS, 300, tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, tokenizer: Tokenizer) -> Checkpoint:
    """A tiny policy that says digits: its head prefers them and the end of the turn."""
    import torch

    model = initialise(Transformer(dense(32, 1, 2, 2, 16, 32, context=128, vocab=tokenizer.vocab_size)), 7)
    with torch.no_grad():
        favoured = [tokenizer.im_end, *(tokenizer.encode(str(d))[0] for d in range(3))]
        generator = torch.Generator().manual_seed(1)
        model.head_weight.copy_(0.05 * torch.randn(model.head_weight.shape, generator=generator))
        direction = torch.randn(model.head_weight.shape[1], generator=generator)
        for block in model.parameters():
            if block.ndim == 2 and block is not model.head_weight and block.shape[0] == tokenizer.vocab_size:
                block.add_(0.5 * direction)  # every embedding shares a direction, which the favoured ids read
        model.head_weight[favoured] += 0.35 * direction
        model.head_weight[tokenizer.im_end] += 0.08 * direction
    return Checkpoint.write(tmp_path_factory.mktemp("checkpoint"), model, tokenizer)


@pytest.fixture(scope="session")
def problems() -> Sequence[Task]:
    return [
        Task(f"t{i}", ("add", "say")[i % 2], ({"role": "user", "content": f"say {i % 3}"},), (), {"answer": str(i % 3)}, 1.0 + i // 2 % 2)
        for i in range(8)
    ]


@pytest.fixture(scope="session")
def tasks(tmp_path_factory: pytest.TempPathFactory, problems: Sequence[Task]) -> Tasks:
    folder: Path = tmp_path_factory.mktemp("tasks")
    rows = [(t, "heldout" if t.id == "t7" else "train", t.id) for t in problems]
    return Tasks.write(folder, rows)  # type: ignore[arg-type]
