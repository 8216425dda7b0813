"""endpoint: a model behind an OpenAI-compatible address."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import Field

from upslope.chat.messages import Message
from upslope.chat.model import Chat, ChatModel, Reply, Speaker, Stop
from upslope.config import Exec, canonical_json, dump
from upslope.machine.files import read_json, write_json


class Endpoint(Speaker):
    """`generate.chat.Endpoint`. url, model: where, up to and with `/v1`, and which. max_new, temperature, top_p: how replies are sampled.

    key_env: name of the environment variable with the key ("" = none). tries, parallel, timeout: attempts per call, calls in flight,
    seconds per attempt. cache: a folder that keeps every reply by what was asked, so that nothing is paid for twice ("" = none).
    """

    kind: ClassVar[str] = "endpoint"

    url: str
    model: str
    max_new: int = Field(default=512, ge=1)
    temperature: float = Field(default=0.0, ge=0)
    top_p: float = Field(default=1.0, gt=0, le=1)
    key_env: Annotated[str, Exec()] = ""
    tries: Annotated[int, Exec(), Field(ge=1)] = 5
    parallel: Annotated[int, Exec(), Field(ge=1)] = 8
    timeout: Annotated[float, Exec(), Field(gt=0)] = 120.0
    cache: Annotated[str, Exec()] = ""

    def open(self) -> ChatModel:
        """The endpoint; UsageError where the key is not set."""
        from upslope.generate import chat
        from upslope.generate.engine import Sampling

        sampling = Sampling(max_new=self.max_new, temperature=self.temperature, top_p=self.top_p)
        model = chat.Endpoint(self.url, self.model, self.key_env, sampling, self.tries, parallel=self.parallel, timeout=self.timeout)
        return Cached(model, Path(self.cache), json.dumps(dump(self, identity=True), sort_keys=True)) if self.cache else model


class Cached:
    """Asks a model only what is not in `folder` yet: one file a reply, named by the digest of the speaker and the call.

    Replies that never came (ABORTED) are not kept.
    """

    def __init__(self, model: ChatModel, folder: Path, speaker: str) -> None:
        self.model, self.folder, self.speaker = model, folder, speaker

    def chat(self, calls: Sequence[Chat]) -> list[Reply]:
        """Replies in the order of the calls."""
        files = [self._file(call) for call in calls]
        asked = [i for i, file in enumerate(files) if not file.is_file()]
        fresh = dict(zip(asked, self.model.chat([calls[i] for i in asked]), strict=True)) if asked else {}
        for i, reply in fresh.items():
            if reply.stop is not Stop.ABORTED:
                write_json(files[i], {"message": reply.message.to_json(), "stop": reply.stop.value, "tokens": reply.tokens})
        return [fresh[i] if i in fresh else _read(file) for i, file in enumerate(files)]

    def _file(self, call: Chat) -> Path:
        asked = [self.speaker, [m.to_json() for m in call.messages], call.seed, [t.to_json() for t in call.tools]]
        return self.folder / f"{hashlib.blake2b(canonical_json(asked), digest_size=16).hexdigest()}.json"


def _read(file: Path) -> Reply:
    body = read_json(file)
    return Reply(Message.from_json(body["message"]), Stop(body["stop"]), body["tokens"])
