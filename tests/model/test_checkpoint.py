"""A checkpoint is a folder that gives the same model back, in the same bytes every time."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.model.support import MIXERS, SMALL, loud, tokenizer, tokens, variant
from upslope.config import UsageError
from upslope.machine.files import digest_path
from upslope.model.checkpoint import Checkpoint
from upslope.model.heads import ScalarHead
from upslope.model.weights import Folder, live, tensors


@pytest.mark.parametrize("name", ["small", *MIXERS])
def test_a_checkpoint_gives_the_model_back(name: str, tmp_path: Path) -> None:
    """Also for configs that no published family expresses."""
    model = loud(SMALL if name == "small" else variant(name))
    again = Checkpoint.write(tmp_path, model, None).model()
    assert again.config == model.config
    assert not again.training
    assert torch.equal(again(tokens(5)), model(tokens(5)))


def test_equal_models_give_equal_bytes(tmp_path: Path) -> None:
    model, head = loud(SMALL.replace(vocab=tokenizer().vocab_size)), ScalarHead(24)
    for name in ("a", "b", "b"):
        Checkpoint.write(tmp_path / name, model, tokenizer(), head)
    assert digest_path(tmp_path / "a") == digest_path(tmp_path / "b")
    files = {p.relative_to(tmp_path / "a").as_posix() for p in (tmp_path / "a").rglob("*") if p.is_file()}
    assert {"model.json", "head.safetensors", "weights/config.json", "weights/model.safetensors", "weights/tokenizer.json"} <= files


def test_the_tokenizer_comes_along(tmp_path: Path) -> None:
    model = loud(SMALL.replace(vocab=tokenizer().vocab_size))
    held = Checkpoint.write(tmp_path, model, tokenizer()).tokenizer()
    assert held.digest == tokenizer().digest
    assert held.encode("add 12") == tokenizer().encode("add 12")
    with pytest.raises(UsageError, match="the model only 64"):
        Checkpoint.write(tmp_path / "small", loud(SMALL), tokenizer())


def test_the_reward_head_is_optional_and_starts_neutral(tmp_path: Path) -> None:
    head = ScalarHead(24)
    assert torch.count_nonzero(head(torch.randn(3, 24))) == 0
    with torch.no_grad():
        head.weight.copy_(torch.arange(24.0))
        head.bias.fill_(2.0)
    held = Checkpoint.write(tmp_path / "rm", loud(SMALL), None, head).reward_head()
    x = torch.randn(3, 24)
    assert torch.allclose(held(x), x @ torch.arange(24.0) + 2.0)
    with pytest.raises(UsageError, match="no reward head"):
        Checkpoint.write(tmp_path / "plain", loud(SMALL), None).reward_head()


def test_handles_on_disk_and_in_memory_carry_the_same(tmp_path: Path) -> None:
    model = loud(SMALL)
    held = Checkpoint.write(tmp_path, model, None)
    disk, memory = tensors(Folder(held.weights)), tensors(live(model))
    assert set(disk) == set(memory)
    assert all(torch.equal(disk[k], memory[k]) for k in disk)


def test_a_folder_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no checkpoint"):
        Checkpoint.load(tmp_path).model()
