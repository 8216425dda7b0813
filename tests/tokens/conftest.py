from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest

from upslope.tokens.mixture import Mixture, Weight
from upslope.tokens.shards import TokenShards
from upslope.tokens.tokenizer import Tokenizer, train_bpe

TEXTS = [
    "add: 12 + 7 = 19. the quick brown fox reads the documentation, and jumps over 300 lazy dogs.\n\n",
    "sort: 9 3 7 gives 3 7 9; reverse: k t a gives a t k. The tokenizer learns merges from pairs.\n",
] * 40


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return train_bpe(TEXTS, 400, tmp_path_factory.mktemp("tokenizer"))


Setup = Callable[..., tuple[TokenShards, Mixture]]


@pytest.fixture
def setup(tmp_path: Path, tokenizer: Tokenizer) -> Setup:
    """Shards of small documents with given numbers of documents per source, and a mixture over them."""

    def make(
        docs: Mapping[str, int],
        weights: Mapping[str, Weight],
        tokens: int = 10_000,
        caps: Mapping[str, float] | None = None,
        over: str = "refuse",
    ) -> tuple[TokenShards, Mixture]:
        texts: dict[str, Sequence[str]] = {s: [f"{s} {i} " + "x" * (i % 7) for i in range(n)] for s, n in docs.items()}
        shards = TokenShards.write(tmp_path / "shards", tokenizer, texts)
        return shards, Mixture.write(tmp_path / "mixture", weights, tokens, caps, over)  # type: ignore[arg-type]

    return make
