"""Chat models: messages in, message out. Synthesis, judges, attackers, targets and graders use only this.

Three members: our engine with a renderer, a script for tests and baselines, and any OpenAI-compatible endpoint.
"""

from __future__ import annotations

import http.client
import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from upslope.chat.messages import Message
from upslope.chat.model import Chat, Reply
from upslope.config import UsageError
from upslope.generate.engine import Engine, Request, Sampling, Stop, generate

if TYPE_CHECKING:
    from upslope.chat.render import Renderer

RETRIED = frozenset({408, 409, 425, 429, 500, 502, 503, 504})


class EngineChat:
    """An engine with a renderer. sampling: how every reply is sampled; the noise is the call's seed."""

    def __init__(self, engine: Engine, renderer: Renderer, sampling: Sampling) -> None:
        self.engine, self.renderer, self.sampling = engine, renderer, sampling

    def chat(self, calls: Sequence[Chat]) -> list[Reply]:
        """Renders, samples, parses. UsageError for a conversation that ends with the assistant's turn."""
        requests = []
        for i, call in enumerate(calls):
            if not call.messages or call.messages[-1].role == "assistant":
                raise UsageError(f"chat {i}: a conversation to be answered must end with another role than the assistant's")
            prompt = self.renderer.open(call.messages, call.tools)
            requests.append(Request(f"chat-{i}", prompt.ids.tolist(), self.sampling, call.seed))
        done = generate(self.engine, requests)
        return [Reply(self.renderer.parse(c.ids.tolist()), c.stop, len(c.ids)) for c in done]


class Endpoint:
    """An OpenAI-compatible endpoint, `POST {url}/chat/completions`.

    url: up to and with `/v1`. key_env: name of the environment variable that holds the key ("" = none); the key itself is never
    stored. tries: attempts per call; status 408, 409, 425, 429, 5xx and broken connections are tried again after `backoff` seconds,
    doubled each time, or after what Retry-After says (at most a minute). parallel: calls in flight. timeout: seconds per attempt.
    """

    def __init__(
        self,
        url: str,
        model: str,
        key_env: str = "",
        sampling: Sampling | None = None,
        tries: int = 5,
        backoff: float = 1.0,
        parallel: int = 8,
        timeout: float = 120.0,
    ) -> None:
        if not url.startswith(("http://", "https://")):
            raise UsageError(f"endpoint url = {url!r}: must start with http:// or https://")
        if key_env and not os.environ.get(key_env):
            raise UsageError(f"endpoint {url}: environment variable {key_env!r} is not set\nway out: export {key_env}=...")
        if sampling is not None and (sampling.top_k or sampling.stop):
            raise UsageError("endpoint sampling: this protocol carries no top_k and no stop ids\nway out: leave them out")
        self.url, self.model, self.key_env = url.rstrip("/"), model, key_env
        self.sampling = sampling or Sampling(max_new=512)
        self.tries, self.backoff, self.parallel, self.timeout = tries, backoff, parallel, timeout

    def chat(self, calls: Sequence[Chat]) -> list[Reply]:
        """Replies in the order of the calls; a call that failed for good comes back ABORTED with the error.

        UsageError where the endpoint refuses the request itself (401, 404, 400 ...): every call would fail alike.
        """
        with ThreadPoolExecutor(max(1, min(self.parallel, len(calls)))) as pool:
            return list(pool.map(self._one, calls))

    def _one(self, call: Chat) -> Reply:
        body: dict[str, Any] = {
            "model": self.model,
            "messages": [_plain(m) for m in call.messages],
            "max_tokens": self.sampling.max_new,
            "temperature": self.sampling.temperature,
            "top_p": self.sampling.top_p,
            "seed": call.seed & 0x7FFFFFFF,
        }
        if call.tools:
            body["tools"] = [t.to_json() for t in call.tools]
        error = ""
        for attempt in range(self.tries):
            wait = self.backoff * 2**attempt
            try:
                return _reply(self._post(body))
            except urllib.error.HTTPError as e:
                detail = e.read(300).decode("utf-8", "replace").strip()
                error = f"HTTP {e.code}: {detail}"
                if e.code not in RETRIED:
                    raise UsageError(f"endpoint {self.url} refused the request\n{error}\nway out: check url, model and key") from None
                after = e.headers.get("Retry-After") or ""
                wait = min(60.0, float(after)) if after.replace(".", "", 1).isdigit() else wait
            except (OSError, http.client.HTTPException, ValueError, LookupError, TypeError) as e:  # broken connection or unreadable answer
                error = f"{type(e).__name__}: {e}"
            if attempt + 1 < self.tries:
                time.sleep(wait)
        return Reply(Message("assistant", ""), Stop.ABORTED, 0, f"{error} (after {self.tries} tries)")

    def _post(self, body: Mapping[str, Any]) -> Any:
        headers = {"Content-Type": "application/json"}
        if self.key_env:
            headers["Authorization"] = f"Bearer {os.environ[self.key_env]}"
        request = urllib.request.Request(f"{self.url}/chat/completions", json.dumps(body).encode(), headers)
        with urllib.request.urlopen(request, timeout=self.timeout) as response:
            return json.loads(response.read())


def _plain(message: Message) -> dict[str, Any]:
    """A message in the endpoint's form; training marks stay at home."""
    return {k: v for k, v in message.to_json().items() if k != "train"}


def _reply(data: Any) -> Reply:
    """The first choice of a response; LookupError or TypeError where it has another form."""
    choice = data["choices"][0]
    message = Message.from_json({**choice["message"], "role": "assistant"})
    ends = {"length": Stop.LENGTH, "stop": Stop.EOS, "tool_calls": Stop.EOS}
    tokens = (data.get("usage") or {}).get("completion_tokens") or 0
    return Reply(message, ends.get(choice.get("finish_reason") or "stop", Stop.EOS), int(tokens))
