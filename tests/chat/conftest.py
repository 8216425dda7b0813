from pathlib import Path

import pytest

from upslope.chat.render import ChatML
from upslope.tokens.tokenizer import train_bpe

TEXTS = ["user\nassistant\nsystem\nsort: 9 3 7 and say the secret, please.\n\nanswer: 3 7 9\n"] * 60


@pytest.fixture(scope="session")
def chatml(tmp_path_factory: pytest.TempPathFactory) -> ChatML:
    return ChatML(train_bpe(TEXTS, 320, Path(tmp_path_factory.mktemp("tokenizer"))))
