"""What every engine must do. Add an engine: give its builder here."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from tests.model.support import SMALL, loud, tokens
from upslope.config import UsageError
from upslope.generate.engine import Completion, Engine, LocalEngine, Request, Sampling, Stop, generate
from upslope.model.transformer import Transformer
from upslope.model.weights import live

EOS = (3, 11, 20, 29, 37, 46, 58)  # many, so that rows end early and move
Build = Callable[[Transformer], Engine]
ENGINES: dict[str, Build] = {
    "local": lambda model: LocalEngine(model, eos=EOS, slots=16),
    "local, few slots": lambda model: LocalEngine(model, eos=EOS, slots=3),
}
TOLERANCE = 1e-4


@pytest.fixture(params=ENGINES)
def build(request: pytest.FixtureRequest) -> Build:
    return ENGINES[request.param]


@pytest.fixture
def model() -> Transformer:
    return loud(SMALL).requires_grad_(False)


def prompts(count: int) -> list[list[int]]:
    return [tokens(3 + 2 * i % 11, seed=i).tolist() for i in range(count)]


def requests(count: int, sampling: Sampling, group: int = 1, record: frozenset[str] = frozenset()) -> list[Request]:
    return [Request(f"{i}.{j}", p, sampling, 100 * i + j, record) for i, p in enumerate(prompts(count)) for j in range(group)]


def by_id(done: list[Completion]) -> dict[str, list[int]]:
    return {c.id: c.ids.tolist() for c in done}


def run(engine: Engine, wanted: int) -> list[Completion]:
    done: list[Completion] = []
    for _ in range(500):
        done += engine.step()
        if len(done) >= wanted:
            return done
    raise AssertionError("the engine does not end")


def test_completions_come_back_in_the_order_of_requests(build: Build, model: Transformer) -> None:
    asked = requests(5, Sampling(max_new=9), group=2)
    done = generate(build(model), asked)
    assert [c.id for c in done] == [r.id for r in asked]
    for c in done:
        assert len(c.ids) == len(c.logprobs) == len(c.version) <= 9
        assert c.ids.dtype == c.version.dtype == np.int32
        assert c.logprobs.dtype == np.float32
        assert c.raw is None
        assert (c.stop is Stop.EOS) == (c.ids[-1] in EOS)
        assert not set(EOS) & set(c.ids[:-1].tolist())
        assert c.stop is Stop.EOS or len(c.ids) == 9
    assert any(c.stop is Stop.EOS for c in done)
    assert any(c.stop is Stop.LENGTH for c in done)


def test_greedy_is_the_model_step_by_step(build: Build, model: Transformer) -> None:
    asked = requests(4, Sampling(max_new=8, temperature=0.0))
    for request, c in zip(asked, generate(build(model), asked)):
        text = list(request.ids)
        for token in c.ids.tolist():
            assert int(model.logits(model(torch.tensor(text))[-1:]).argmax()) == token
            text.append(token)
        assert not c.logprobs.any()


def test_the_outcome_does_not_depend_on_the_batch(build: Build, model: Transformer) -> None:
    asked = requests(6, Sampling(max_new=12), group=3)
    whole = by_id(generate(build(model), asked))
    alone = by_id([generate(build(model), [r])[0] for r in asked[::4]])
    turned = by_id(generate(build(model), asked[::-1]))
    assert all(whole[i] == ids for i, ids in alone.items())
    assert whole == turned
    assert len({tuple(v) for v in whole.values()}) > 12, "seeds must differ in effect"


def test_late_requests_join_without_disturbing(build: Build, model: Transformer) -> None:
    asked = requests(6, Sampling(max_new=12))
    engine = build(model)
    engine.submit(asked[:3])
    done = engine.step() + engine.step()
    engine.submit(asked[3:])
    done += run(engine, 6 - len(done))
    assert by_id(done) == by_id(generate(build(model), asked))


def test_the_same_calls_give_the_same_bits(build: Build, model: Transformer) -> None:
    asked = requests(5, Sampling(max_new=10, temperature=0.9), group=2)
    one, two = generate(build(model), asked), generate(build(model), asked)
    assert all(np.array_equal(a.ids, b.ids) and np.array_equal(a.logprobs, b.logprobs) for a, b in zip(one, two))


def test_a_completion_can_be_continued_with_the_same_noise(build: Build, model: Transformer) -> None:
    """Noise is keyed by position, so a prompt plus the first tokens, same seed, goes on as if it had not been cut."""
    for request in requests(4, Sampling(max_new=12)):
        (whole,) = generate(build(model), [request])
        if len(whole.ids) > 4:
            longer = request._replace(ids=[*request.ids, *whole.ids[:4].tolist()], sampling=Sampling(max_new=8))
            (rest,) = generate(build(model), [longer])
            assert rest.ids.tolist() == whole.ids[4:].tolist()


@pytest.mark.parametrize(
    "sampling", [Sampling(max_new=10), Sampling(max_new=10, temperature=0.7, top_k=5), Sampling(max_new=10, top_p=0.8)]
)
def test_logprobs_are_of_the_distribution_sampled_from_and_raw_of_the_model(build: Build, model: Transformer, sampling: Sampling) -> None:
    from upslope.generate.sampler import restrict

    asked = requests(4, sampling, record=frozenset({"raw"}))
    for request, c in zip(asked, generate(build(model), asked)):
        text = torch.tensor([*request.ids, *c.ids.tolist()])
        logits = model.logits(model(text))[len(request.ids) - 1 : -1]
        chosen = torch.from_numpy(c.ids.astype(np.int64))[:, None]
        raw = torch.log_softmax(logits, -1).gather(1, chosen)[:, 0]
        n = len(logits)
        used = restrict(
            torch.log_softmax(logits / sampling.temperature, -1), torch.full((n,), sampling.top_k), torch.full((n,), sampling.top_p)
        ).gather(1, chosen)[:, 0]
        assert c.raw is not None
        assert np.abs(c.raw - raw.numpy()).max() <= TOLERANCE
        assert np.abs(c.logprobs - used.numpy()).max() <= TOLERANCE


def test_score_agrees_with_sampling_and_with_the_model(build: Build, model: Transformer) -> None:
    engine = build(model)
    asked = requests(4, Sampling(max_new=10, temperature=0.8))
    done = generate(engine, asked)
    seqs = [[*r.ids, *c.ids.tolist()] for r, c in zip(asked, done)]
    for r, c, s in zip(asked, done, engine.score(seqs, temperature=0.8)):
        assert np.abs(s.logprobs[len(r.ids) :] - c.logprobs).max() <= TOLERANCE
        assert s.logprobs[0] == 0
        assert s.top is None
    (ranked,) = engine.score(seqs[:1], top=3)
    wanted = torch.log_softmax(model.logits(model(torch.tensor(seqs[0]))), -1).topk(3, -1)
    assert ranked.top is not None
    assert ranked.top_ids is not None
    assert np.array_equal(ranked.top_ids[1:], wanted.indices[:-1].numpy())
    assert np.abs(ranked.top[1:] - wanted.values[:-1].numpy()).max() <= TOLERANCE
    assert ranked.top_ids[0].tolist() == [-1, -1, -1]


def test_score_does_not_disturb_what_is_in_flight(build: Build, model: Transformer) -> None:
    asked = requests(3, Sampling(max_new=8))
    engine = build(model)
    engine.submit(asked)
    done = engine.step()
    engine.score([[1, 2, 3]])
    assert by_id(done + run(engine, 3 - len(done))) == by_id(generate(build(model), asked))


def test_stop_tokens_end_a_completion(build: Build, model: Transformer) -> None:
    free = generate(build(model), requests(4, Sampling(max_new=10)))
    long = max(free, key=lambda c: len(c.ids))
    at = len(long.ids) // 2
    stop = int(long.ids[at])
    request = next(r for r in requests(4, Sampling(max_new=10, stop=(63, stop))) if r.id == long.id)
    (cut,) = generate(build(model), [request])
    first = long.ids.tolist().index(stop)
    assert cut.stop is Stop.TOKEN
    assert cut.ids.tolist() == long.ids[: first + 1].tolist()


def test_the_context_is_a_limit(build: Build, model: Transformer) -> None:
    context = model.config.context
    engine = build(model)
    assert engine.info.context == context
    sampling = Sampling(max_new=50, temperature=0.0)
    short, full, over = (Request(str(n), tokens(n).tolist(), sampling, 0) for n in (context - 4, context, context + 9))
    a, b, c = generate(engine, [short, full, over])
    assert a.stop is Stop.CONTEXT or (a.stop is Stop.EOS and len(a.ids) <= 4)
    assert b.stop is c.stop is Stop.CONTEXT
    assert len(a.ids) <= 4
    assert len(b.ids) == len(c.ids) == 0


def test_cancelled_requests_come_back_with_what_they_have(build: Build, model: Transformer) -> None:
    asked = requests(5, Sampling(max_new=12))
    whole = {c.id: c for c in generate(build(model), asked)}
    engine = build(model)
    engine.submit(asked)
    early = [c for _ in range(2) for c in engine.step()]
    engine.cancel(["1.0", "4.0", "unknown"])
    done = {c.id: c for c in early + run(engine, 5 - len(early))}
    assert set(done) == set(whole)
    for name in ("1.0", "4.0"):
        assert done[name].stop is Stop.ABORTED or done[name].id in {c.id for c in early}
        assert done[name].ids.tolist() == whole[name].ids[: len(done[name].ids)].tolist()
    assert all(done[n].ids.tolist() == whole[n].ids.tolist() for n in ("0.0", "2.0", "3.0"))
    assert generate(engine, [asked[1]])[0].ids.tolist() == whole["1.0"].ids.tolist()


def test_new_weights_are_used_and_tokens_say_which(build: Build, model: Transformer) -> None:
    engine, other = build(model), loud(SMALL, seed=5)
    asked = requests(3, Sampling(max_new=8, temperature=0.0))
    engine.submit(asked)
    done = engine.step() + engine.step()
    engine.load(live(other), 4)
    assert engine.info.version == 4
    done += run(engine, 3 - len(done))
    for c in done:
        assert c.version.tolist() == [0 if i < 2 else 4 for i in range(len(c.ids))]
    assert any(len(c.ids) > 2 for c in done)
    assert by_id(generate(engine, asked)) == by_id(generate(build(other), asked))
    with pytest.raises(UsageError, match="version 4 does not rise"):
        engine.load(live(other), 4)


def test_training_the_given_model_does_not_reach_the_engine(build: Build, model: Transformer) -> None:
    engine, asked = build(model), requests(2, Sampling(max_new=6))
    before = by_id(generate(engine, asked))
    with torch.no_grad():
        model.embed.weight.mul_(-1)
    assert by_id(generate(engine, asked)) == before


def test_not_finite_weights_name_the_request(build: Build, model: Transformer) -> None:
    with torch.no_grad():
        model.embed.weight[42] = torch.nan
    engine = build(model)
    engine.submit([Request("good", [1, 2], Sampling(max_new=1), 0), Request("bad", [1, 42], Sampling(max_new=1), 0)])
    with pytest.raises(FloatingPointError, match=r"'bad': logits at position 2"):
        run(engine, 2)
    with pytest.raises(FloatingPointError):
        build(model).score([[1, 42, 3]])


@pytest.mark.parametrize(
    ("request_", "said"),
    [
        (Request("a", [], Sampling(max_new=1), 0), "'a': the prompt is empty"),
        (Request("a", [64], Sampling(max_new=1), 0), "outside the vocabulary of 64"),
        (Request("a", [-1], Sampling(max_new=1), 0), "outside the vocabulary of 64"),
        (Request("a", [1], Sampling(max_new=1), 0, frozenset({"routes"})), "cannot record"),
        (Request("x", [1], Sampling(max_new=1), 0), "'x' is already in flight"),
    ],
)
def test_wrong_requests_are_refused_and_nothing_is_queued(build: Build, model: Transformer, request_: Request, said: str) -> None:
    engine = build(model)
    engine.submit([Request("x", [1], Sampling(max_new=2, temperature=0.0), 0)])
    with pytest.raises(UsageError, match=said):
        engine.submit([Request("fine", [1], Sampling(max_new=1), 0), request_])
    assert {c.id for c in run(engine, 1)} == {"x"}
    assert engine.step() == []


def test_scoring_refuses_what_does_not_fit(build: Build, model: Transformer) -> None:
    for seq in ([], list(range(60)) + [1] * 10):
        with pytest.raises(UsageError, match="sequence 0 has"):
            build(model).score([seq])
