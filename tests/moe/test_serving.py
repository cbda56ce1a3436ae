"""The server as programs meet it: the openai client, streams, limits, clients that leave, and the end."""

from __future__ import annotations

import contextlib
import http.client
import importlib
import json
import socket
import sys
import threading
import time
from dataclasses import replace

import pytest
import torch

from checkpoints.model_io import save_model
from moe.config import ModelConfig
from moe.errors import UserError
from moe.inference.answers import Question, Writer
from moe.inference.sampling import Sampling
from moe.model import Transformer
from moe.serving.start import open_port
from moe.tokenizer import train_sentencepiece

openai = pytest.importorskip("openai", reason="openai is not installed")
app = pytest.importorskip("moe.serving.app", reason="starlette or uvicorn is not installed")
PROMPT = "Return the sum of all even numbers in a list."
SLOW = 4000  # tokens of an answer that lasts longer than any test waits


@pytest.fixture(scope="module")
def writer():
    tokenizer = train_sentencepiece([PROMPT, "def total(xs):\n    return sum(xs)\n"] * 20, 400, None)
    sizes = {"vocab_size": tokenizer.vocab_size, "dim": 32, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2}
    config = ModelConfig(**sizes, hidden_dim=48, max_seq_len=8192, num_experts=2, expert_languages=("python", "cpp"))
    made = Writer(Transformer(config).reset(0, std=0.2), tokenizer, "plain", 24)
    with torch.no_grad():  # never the most likely token, so greedy answers have all their tokens
        made.model.output.weight[list(made.stop_ids)] = 0.0
    return made


@contextlib.contextmanager
def serving(writer, rows=4, waiting=4):
    service = app.Service(writer, "tiny", app.listen(0), rows, waiting)
    ready = threading.Event()
    thread = threading.Thread(target=service.run, args=(ready.set,))
    thread.start()
    assert ready.wait(30)
    try:
        yield service
    finally:
        service.stop()
        thread.join(30)
        assert not thread.is_alive()


@pytest.fixture(scope="module")
def service(writer):
    with serving(writer) as running:
        yield running


@pytest.fixture(scope="module")
def client(service):
    with openai.OpenAI(base_url=service.url, api_key="none", max_retries=0) as made:
        yield made


def answer_alone(writer, text, language=None, raw=False, routing="free", number=0, **settings):
    """The answer of an engine that does nothing else."""
    values = {"max_new_tokens": 24, "sampling": Sampling(), "stop": ()} | settings
    own = Writer(writer.model, writer.tokenizer, writer.template, **values, routing=routing)
    tokenizer = writer.tokenizer
    ids = tokenizer.encode(text, bos=tokenizer.add_bos) if raw else own.encode(Question(text, language))
    answers = []
    engine = own.engine(1)
    engine.submit(own.continuation(ids, language, answers.append, number=number))
    engine.run()
    return answers[0]


def alone(*arguments, **settings):
    return answer_alone(*arguments, **settings).text


def idle(service, seconds=20):
    """Waits until no request has a place."""
    end = time.monotonic() + seconds
    while service.batcher.load and time.monotonic() < end:
        time.sleep(0.01)
    return service.batcher.load == 0


def test_models(client):
    (model,) = client.models.list().data
    assert model.id == "tiny" and model.experts == ["python", "cpp"] and client.models.retrieve("tiny").id == "tiny"
    with pytest.raises(openai.NotFoundError, match="'other' does not exist; this server has 'tiny'"):
        client.completions.create(model="other", prompt="a")


def test_completions(client, writer):
    found = client.completions.create(model="tiny", prompt=["def total", "sum"], n=2, echo=True)
    assert [c.text for c in found.choices] == [
        text + alone(writer, text, raw=True) for text in ("def total", "sum") for _ in range(2)
    ]
    assert [c.index for c in found.choices] == [0, 1, 2, 3] and {c.finish_reason for c in found.choices} == {"length"}
    read = sum(len(writer.tokenizer.encode(text, bos=writer.tokenizer.add_bos)) for text in ("def total", "sum"))
    assert (found.usage.prompt_tokens, found.usage.completion_tokens) == (read, 96)
    ids = writer.tokenizer.encode("def total", bos=writer.tokenizer.add_bos)
    assert (
        client.completions.create(model="tiny", prompt=ids).choices[0].text == found.choices[0].text[len("def total") :]
    )
    drawn = client.completions.create(model="tiny", prompt="a", n=2, temperature=0.9, top_p=0.8, seed=7, max_tokens=9)
    sampling = Sampling(0.9, top_p=0.8, seed=7)
    wanted = [alone(writer, "a", raw=True, sampling=sampling, number=i, max_new_tokens=9) for i in range(2)]
    assert [c.text for c in drawn.choices] == wanted and wanted[0] != wanted[1]
    assert client.completions.create(model="tiny", prompt="a", temperature=3.0) != client.completions.create(
        model="tiny", prompt="a", temperature=3.0
    ), "without a seed every request draws anew"


def test_stop_and_routing(client, writer):
    whole = alone(writer, PROMPT, "cpp", routing="forced")
    asked = {"model": "tiny", "messages": [{"role": "user", "content": PROMPT}]}
    found = client.chat.completions.create(**asked, extra_body={"language": "cpp", "routing": "forced"}).choices[0]
    assert found.message.content == whole != alone(writer, PROMPT, "cpp")
    assert found.routing == {"expert": "cpp", "shares": {"python": 0.0, "cpp": 1.0}}
    stop = whole[5:7]
    cut = client.chat.completions.create(**asked, stop=stop, extra_body={"experts": [1], "language": "cpp"}).choices[0]
    assert cut.message.content == whole[: whole.index(stop)] and cut.finish_reason == "stop"


def test_conversations(client, writer):
    turns = [("system", "Be brief."), ("user", "one"), ("assistant", "two"), ("user", PROMPT)]
    messages = [{"role": role, "content": [{"type": "text", "text": text}]} for role, text in turns]
    found = client.chat.completions.create(model="tiny", messages=messages, max_completion_tokens=12)
    own = Writer(writer.model, writer.tokenizer, "plain", 12)
    wanted = own.answer(Question(PROMPT, history=tuple(turns[:-1])))
    assert found.choices[0].message.content == wanted.text and found.usage.prompt_tokens == wanted.prompt_tokens


def test_streams(client, writer):
    asked = {"model": "tiny", "stream": True, "stream_options": {"include_usage": True}, "n": 2, "temperature": 0.8}
    texts = ["", ""]
    *parts, last = client.chat.completions.create(**asked, seed=1, messages=[{"role": "user", "content": PROMPT}])
    for part in parts:
        (choice,) = part.choices
        texts[choice.index] += choice.delta.content or ""
    wanted = [answer_alone(writer, PROMPT, sampling=Sampling(0.8, seed=1), number=i) for i in range(2)]
    assert texts == [answer.text for answer in wanted]
    assert not last.choices and last.usage.completion_tokens == sum(answer.tokens for answer in wanted)
    ends = [p.choices[0] for p in parts if p.choices[0].finish_reason]
    assert [sorted(e.routing["shares"]) for e in ends] == [["cpp", "python"]] * 2 and len(parts) > 20
    stream = client.completions.create(model="tiny", prompt="a", stream=True, echo=True)
    assert "".join(part.choices[0].text for part in stream) == "a" + alone(writer, "a", raw=True)


def test_requests_side_by_side_are_answered_as_alone(client, writer):
    found = {}

    def ask(number):
        settings = {"max_tokens": 3 + 5 * (number % 4), "temperature": number % 3 / 2, "seed": number}
        text = PROMPT[: 5 + number]
        answer = client.completions.create(model="tiny", prompt=text, **settings).choices[0].text
        sampling = Sampling(settings["temperature"], seed=number)
        wanted = alone(writer, text, raw=True, sampling=sampling, max_new_tokens=settings["max_tokens"])
        found[number] = answer == wanted

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == dict.fromkeys(range(8), True)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"prompt": "a", "max_tokens": 0}, "max_tokens is 0"),
        ({"prompt": "a", "max_tokens": True}, "max_tokens is true, expected a whole number"),
        ({"prompt": "a", "temperature": -1}, "temperature is -1.0"),
        ({"prompt": "a", "temperature": float("nan")}, "temperature is NaN, expected a number"),
        ({"prompt": "a", "top_p": 0}, "top_p is 0.0"),
        ({"prompt": "a", "seed": -1}, "seed is -1"),
        ({"prompt": "a", "n": 9}, "n is 9 for 1 prompts, expected 1 to 8"),
        ({"prompt": "a", "n": 0}, "expected 1 to 8"),
        ({"prompt": "a", "stop": [""]}, "a stop string is empty"),
        ({"prompt": "a", "stop": ["x"] * 17}, "stop has 17 texts"),
        ({"prompt": "a", "stop": 3}, "stop is 3, expected a text"),
        ({"prompt": "a", "logprobs": 1}, "logprobs is not supported"),
        ({"prompt": "a", "temprature": 1}, "unknown field 'temprature' (did you mean 'temperature'?)"),
        ({"prompt": "a", "language": "pyton", "routing": "forced"}, "did you mean 'python'"),
        ({"prompt": "a", "language": "python"}, "language changes nothing"),
        ({"prompt": "a", "routing": "forced"}, "without a language"),
        ({"prompt": "a", "language": "java", "routing": "forced"}, "no expert is for java"),
        ({"prompt": "a", "experts": [2]}, "unknown expert '2'"),
        ({"prompt": "a", "suffix": "b"}, "fill"),
        ({"prompt": [1], "suffix": "b"}, "with a suffix it has to be a text"),
        ({"prompt": "a", "stream_options": {"x": 1}}, "unknown stream_options 'x'"),
        ({"prompt": []}, "the prompt is empty"),
        ({"prompt": [99999]}, "neither a text nor a list of tokens"),
        ({"prompt": [["a"]]}, "neither a text nor a list of tokens"),
        ({"prompt": {"a": 1}}, "expected a text, a list"),
        ({"prompt": "a\ud800"}, "surrogate"),
        ({"prompt": "a b " * 9000}, "leaves no room in the model's context of 8192 tokens"),
        ({}, "'prompt' is missing"),
        ({"messages": []}, "'messages' is missing or empty"),
        ({"messages": [{"role": "tool", "content": "a"}]}, "message 1 has no known role"),
        ({"messages": [{"role": "user"}]}, "message 1 has no text"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "message 1 has no text"),
        ({"messages": [{"role": "assistant", "content": "a"}]}, "the last message is of the assistant"),
        ({"messages": [{"role": "user", "content": " "}]}, "the prompt is empty"),
        ([1], "not a JSON object"),
    ],
)
def test_mistakes_give_one_line(service, body, message):
    chat = isinstance(body, dict) and "messages" in body
    status, answer = post(service, f"/v1/{'chat/' if chat else ''}completions", json.dumps(body))
    assert status == 400 and message in answer["error"]["message"] and "\n" not in answer["error"]["message"]
    assert answer["error"]["type"] == "invalid_request_error" and service.batcher.load == 0


def post(service, path, body, **headers):
    connection = http.client.HTTPConnection("127.0.0.1", int(service.url.split(":")[2].split("/")[0]), timeout=30)
    with contextlib.closing(connection):
        headers = {"Content-Type": "application/json"} | {name.replace("_", "-"): v for name, v in headers.items()}
        connection.request("GET" if body is None else "POST", path, body, headers)
        response = connection.getresponse()
        content = response.read()
        return response.status, json.loads(content) if content.startswith(b"{") else content.decode()


def test_what_the_door_turns_away(service):
    assert (
        post(
            service,
            "/v1/completions",
            '{"prompt": "a"',
        )[0]
        == 400
    )
    assert post(service, "/v1/completions", "[" * 100000)[0] == 400
    assert post(service, "/v1/completions", b"\xff\xfe\x00")[0] == 400
    assert post(service, "/v1/completions", '{"prompt": "a"}', Content_Type="text/plain")[0] == 415
    assert post(service, "/v1/completions", '{"prompt": "' + "a" * (9 << 20) + '"}')[0] == 413
    assert post(service, "/v1/models", None, Host="evil.example")[0] == 400
    status, answer = post(service, "/v1/completions", None)
    assert status == 405 and "GET /v1/completions: method not allowed" in answer["error"]["message"]
    status, answer = post(service, "/etc/passwd", None)
    assert status == 404 and "not found; see /v1/models" in answer["error"]["message"]


def test_a_soak_counts_what_differs(writer, tmp_path, capsys, monkeypatch):
    soak = importlib.import_module("eval.server_soak")
    save_model(writer.model, writer.tokenizer, tmp_path / "model", template="plain")
    arguments = ["--model", str(tmp_path / "model"), "--requests", "6", "--clients", "3", "--max-tokens", "6"]
    command = soak.make_parser().parse_args([*arguments, "--device", "cpu"])
    assert soak.main(command) == 0
    out = capsys.readouterr().out
    assert " 0 different" in out and " 0 errors; 0 rows held" in out
    kept = soak.send
    monkeypatch.setattr(soak, "send", lambda *a: [(text + "x", end) for text, end in kept(*a) or []])
    assert soak.main(command) == 1 and " 0 equal" in capsys.readouterr().out


def test_a_full_queue_turns_requests_away_and_clients_that_leave_free_their_places(service, client):
    streams = [client.completions.create(model="tiny", prompt="a", max_tokens=SLOW, n=2, stream=True) for _ in range(4)]
    for stream in streams[:2]:
        next(iter(stream))  # these four are being written, the others wait
    assert service.batcher.load == 8
    with pytest.raises(openai.RateLimitError, match="8 requests are being answered or waiting"):
        client.completions.create(model="tiny", prompt="a")
    for stream in streams:
        stream.close()
    assert idle(service)
    with pytest.raises(openai.APITimeoutError):
        client.completions.create(model="tiny", prompt="a", max_tokens=SLOW, n=8, timeout=0.3)
    assert idle(service)
    assert client.completions.create(model="tiny", prompt="a", max_tokens=2).usage.completion_tokens == 2


def test_a_fault_fails_what_runs_and_the_server_goes_on(writer, monkeypatch):
    with serving(writer) as service, openai.OpenAI(base_url=service.url, api_key="x", max_retries=0) as client:
        forward, model = type(writer.model).forward, writer.model
        monkeypatch.setattr(type(model), "forward", lambda *_, **__: (_ for _ in ()).throw(MemoryError("no\nmemory")))
        with pytest.raises(openai.InternalServerError, match="MemoryError: no memory"):
            client.completions.create(model="tiny", prompt="a")
        monkeypatch.setattr(type(model), "forward", forward)
        assert client.completions.create(model="tiny", prompt="a", max_tokens=2).usage.completion_tokens == 2


def test_the_end_fails_what_runs(writer):
    with serving(writer) as service, openai.OpenAI(base_url=service.url, api_key="x", max_retries=0) as client:
        stream = iter(client.completions.create(model="tiny", prompt="a", max_tokens=SLOW, stream=True))
        next(stream)
        threading.Thread(target=service.stop).start()
        with pytest.raises(openai.APIError, match="the server is stopping"):
            for _ in stream:
                pass


def test_ports():
    with pytest.raises(UserError, match="the port is 70000"):
        app.listen(70000)
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(UserError, match="cannot be used"):
        app.listen(taken.getsockname()[1])


def test_without_the_libraries_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    monkeypatch.delitem(sys.modules, "moe.serving.app")
    with pytest.raises(UserError, match="the server needs uvicorn; type: pip install starlette uvicorn"):
        open_port(0)


def test_the_context_bounds_an_answer(writer):
    small = Writer(writer.model, writer.tokenizer, "plain", 24)
    small.model = Transformer(replace(writer.model.config, max_seq_len=16)).reset(0, std=0.2)
    with serving(small) as service, openai.OpenAI(base_url=service.url, api_key="x", max_retries=0) as client:
        found = client.completions.create(model="tiny", prompt="def", max_tokens=500)
        assert found.usage.total_tokens == 16 and found.choices[0].finish_reason == "length"
