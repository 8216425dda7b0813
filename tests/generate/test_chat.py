"""Chat models: the engine with a renderer, a script, and an endpoint on the loopback that misbehaves in every way."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any, ClassVar

import pytest

from tests.model.support import SMALL, loud, tokenizer
from upslope.chat.messages import Message, Tool
from upslope.chat.model import Chat, Reply, Scripted
from upslope.chat.render import ChatML
from upslope.config import UsageError
from upslope.generate.chat import Endpoint, EngineChat
from upslope.generate.engine import LocalEngine, Request, Sampling, Stop, generate

ASK = Chat((Message("user", "add 12 and 7"),), seed=4)


def test_an_engine_answers_as_its_tokens_say() -> None:
    ours = tokenizer()
    engine = LocalEngine(loud(SMALL.replace(vocab=ours.vocab_size)), ours)
    render, sampling = ChatML(ours), Sampling(max_new=9)
    first, second, third = EngineChat(engine, render, sampling).chat([ASK, ASK._replace(seed=5), ASK])
    (c,) = generate(engine, [Request("a", render.open(ASK.messages).ids.tolist(), sampling, 4)])
    assert first == Reply(render.parse(c.ids.tolist()), c.stop, len(c.ids))
    assert first == third != second
    with pytest.raises(UsageError, match=r"chat 0: .*must end with another role"):
        EngineChat(engine, render, sampling).chat([Chat((Message("assistant", "me"),))])


def test_a_script_answers_in_order_or_by_function() -> None:
    said = Scripted(("a", "b"))
    assert [r.message.content for r in said.chat([ASK] * 3) + said.chat([ASK])] == ["a", "b", "a", "b"]
    assert Scripted(lambda c: c.messages[-1].content.upper()).chat([ASK])[0] == Reply(Message("assistant", "ADD 12 AND 7"), Stop.EOS)
    with pytest.raises(UsageError, match="at least one reply"):
        Scripted(())


class Server(BaseHTTPRequestHandler):
    """Answers from a script: (status, headers, body) per request; a body of None breaks the connection."""

    script: ClassVar[list[tuple[int, dict[str, str], Any]]] = []
    seen: ClassVar[list[dict[str, Any]]] = []
    lock: ClassVar[threading.Lock] = threading.Lock()

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.lock:
            Server.seen.append({"path": self.path, "key": self.headers.get("Authorization"), **body})
            status, headers, answer = Server.script.pop(0) if Server.script else (200, {}, echo(body))
        if answer is None:
            self.connection.close()
            return
        data = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args: object) -> None:
        """Silent."""


def echo(body: dict[str, Any]) -> dict[str, Any]:
    text = body["messages"][-1]["content"]
    choice = {"message": {"role": "assistant", "content": f"re: {text}"}, "finish_reason": "stop"}
    return {"choices": [choice], "usage": {"completion_tokens": 3}}


@pytest.fixture
def url() -> Iterator[str]:
    Server.script, Server.seen = [], []
    server = HTTPServer(("127.0.0.1", 0), Server)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}/v1"
    server.shutdown()
    thread.join()
    server.server_close()


def test_an_endpoint_answers_in_order(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEST_KEY", "s3")
    model = Endpoint(url, "m", "TEST_KEY", Sampling(max_new=7, temperature=0.5, top_p=0.9))
    asks = [Chat((Message("system", "be brief"), Message("user", f"q{i}")), seed=i, tools=(Tool("t", "d"),)) for i in range(9)]
    replies = model.chat(asks)
    assert [r.message.content for r in replies] == [f"re: q{i}" for i in range(9)]
    assert replies[0].tokens == 3
    assert replies[0].stop is Stop.EOS
    sent = next(s for s in Server.seen if s["seed"] == 4)
    assert sent["path"] == "/v1/chat/completions"
    assert sent["key"] == "Bearer s3"
    assert (sent["model"], sent["max_tokens"], sent["temperature"], sent["top_p"]) == ("m", 7, 0.5, 0.9)
    assert sent["messages"][0] == {"role": "system", "content": "be brief"}
    assert sent["tools"][0]["function"]["name"] == "t"
    assert "s3" not in repr(vars(model))


@pytest.mark.parametrize(
    "trouble",
    [(429, {"Retry-After": "0"}, {}), (503, {}, {}), (200, {}, b"<html>"), (200, {}, {"choices": []}), (0, {}, None)],
    ids=["rate limit", "overload", "no JSON", "no choice", "broken connection"],
)
def test_passing_troubles_are_tried_again(url: str, trouble: tuple[int, dict[str, str], Any]) -> None:
    Server.script = [trouble, trouble]
    (reply,) = Endpoint(url, "m", backoff=0.001).chat([ASK])
    assert reply.message.content == "re: add 12 and 7"
    assert len(Server.seen) == 3


def test_lasting_trouble_is_an_aborted_reply_never_an_empty_answer(url: str) -> None:
    Server.script = [(500, {}, {"error": "down"})] * 3
    (reply,) = Endpoint(url, "m", tries=3, backoff=0.001).chat([ASK])
    assert reply.stop is Stop.ABORTED
    assert "HTTP 500" in reply.error
    assert "after 3 tries" in reply.error


def test_a_refusal_of_the_request_is_a_usage_error_at_once(url: str) -> None:
    Server.script = [(401, {}, {"error": "bad key"})]
    with pytest.raises(UsageError, match=r"refused the request\s+HTTP 401: .*bad key"):
        Endpoint(url, "m").chat([ASK])
    assert len(Server.seen) == 1


def test_a_reply_cut_short_says_so_and_reasoning_is_kept(url: str) -> None:
    message = {"role": "assistant", "content": "x", "reasoning_content": "hm"}
    Server.script = [(200, {}, {"choices": [{"message": message, "finish_reason": "length"}]})]
    (reply,) = Endpoint(url, "m").chat([ASK])
    assert reply.stop is Stop.LENGTH
    assert reply.message.reasoning == "hm"


def test_wrong_settings_are_refused_before_any_call() -> None:
    with pytest.raises(UsageError, match="must start with http"):
        Endpoint("example.org", "m")
    with pytest.raises(UsageError, match="'NO_SUCH_KEY_IS_SET' is not set"):
        Endpoint("http://x/v1", "m", "NO_SUCH_KEY_IS_SET")
    with pytest.raises(UsageError, match="no top_k"):
        Endpoint("http://x/v1", "m", sampling=Sampling(max_new=1, top_k=3))
