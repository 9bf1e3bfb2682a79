"""A VLM behind a server: one sentence or an error of one, whatever the server does."""

from __future__ import annotations

import asyncio
import base64
import socket
import threading
from collections.abc import Iterator
from dataclasses import replace

import pytest

pytest.importorskip("aiohttp", reason="aiohttp is not installed: pip install vljepa_ros[web]")

import aiohttp
from vlm_server import SAYS, VlmServer

from vljepa_ros.words.asker import Answer, Asker, SupersededError
from vljepa_ros.words.vlm import KEY, LONGEST, Endpoint, VlmError, describe, sentence

PICTURE = b"\xff\xd8\xff\xd9"
SECRET = "sk-very-secret-0123456789"


@pytest.fixture
def server() -> Iterator[VlmServer]:
    server = VlmServer()
    yield server
    server.close()


@pytest.fixture
def endpoint(server: VlmServer) -> Endpoint:
    return Endpoint(server.url, "", "what?", 10.0)


def ask(endpoint: Endpoint, *pictures: bytes) -> str:
    async def once() -> str:
        async with aiohttp.ClientSession() as session:
            return await describe(session, endpoint, pictures or (PICTURE,))

    return asyncio.run(once())


def test_pictures_and_prompt_go_out_as_the_servers_want_them(
    server: VlmServer, endpoint: Endpoint
) -> None:
    assert ask(replace(endpoint, model="llava"), PICTURE, b"\xff\xd8two") == SAYS
    [request] = server.requests
    assert (request["model"], request["temperature"], request["stream"]) == ("llava", 0, False)
    assert 32 <= request["max_tokens"] <= 64
    [text, *_] = request["messages"][0]["content"]
    assert text == {"type": "text", "text": "what?"}
    first, second = server.pictures()
    assert first == "data:image/jpeg;base64," + base64.b64encode(PICTURE).decode()
    assert base64.b64decode(second.split(",")[1]) == b"\xff\xd8two"
    ask(replace(endpoint, url=server.url + "/chat/completions/"))
    assert "model" not in server.requests[1]  # the server has its own


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("thought", SAYS), ("end of thought", SAYS), ("sentences", SAYS), ("cut", SAYS),
        ("markdown", SAYS), ("parts", SAYS), ("controls", "A hand [31m covers the cube."),
        ("unended", "a hand covers the cube"),
    ],
)  # fmt: skip
def test_one_sentence_is_taken_from_what_is_said(endpoint: Endpoint, model: str, said: str) -> None:
    assert ask(replace(endpoint, model=model)) == said


@pytest.mark.parametrize(
    ("model", "problem"),
    [
        ("400", "answered 400 (At most 1 image(s) may be provided)"),
        ("401", f"answered 401 (Wrong key: None); put its key into the environment variable {KEY}"),
        ("404", "answered 404 (model 'x' not found); see whether 'vlm.url' and 'vlm.model'"),
        ("422", "answered 422 ([{'loc': ['body'], 'msg': 'field required'}])"),
        ("429", "answered 429 (Rate limit reached)"),
        ("500", "answered 500 (image input is not supported)"),
        ("503", "answered 503 (Loading model)"),
        ("redirect", "sends elsewhere (307); put the address itself into 'vlm.url'"),
        ("cut body", "cannot be asked (ClientPayloadError"),
        ("endless", "sent more than 1024 KiB"),
        ("html", "answered what is no JSON object (502 Bad Gateway)"),
        ("broken", "answered what is no JSON object"),
        ("deep", "answered what is no JSON object"),
        ("list", "answered what is no JSON object ([1, 2])"),
        ("bytes", "answered what is no JSON object"),
        ("no choices", "answered without a choice"),
        ("odd choices", "answered without a choice"),
        ("odd message", "says nothing"),
        ("error inside", "answered without a choice (out of memory)"),
        ("nothing", "says nothing"),
        ("null", "says nothing"),
        ("thinks", "only thought, and said nothing"),
        ("thinks too", "only thought, and said nothing"),
        ("open thought", "only thought, and said nothing"),
        ("cut early", "says no whole sentence within 64 tokens"),
        ("long", "says a sentence of 109,999 characters; 300 is the most"),
    ],
)
def test_every_misbehaviour_is_one_sentence(
    server: VlmServer, endpoint: Endpoint, model: str, problem: str
) -> None:
    with pytest.raises(VlmError) as caught:
        ask(replace(endpoint, model=model))
    said = str(caught.value)
    assert problem in said
    assert said.startswith(f"The VLM at {server.url}/chat/completions ")
    assert said.endswith(".") and "\n" not in said and len(said) < 400
    assert len(server.requests) == 1  # also where it sends elsewhere


def test_a_server_that_is_slow_or_not_there_is_given_up(
    server: VlmServer, endpoint: Endpoint
) -> None:
    with pytest.raises(VlmError, match=r"did not answer within 0\.2 s \(vlm\.timeout\)"):
        ask(replace(endpoint, model="hold", timeout=0.2))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
        with pytest.raises(VlmError, match=r"cannot be asked \(ClientConnectorError"):
            ask(replace(endpoint, url=nobody))
    with pytest.raises(VlmError, match="cannot be asked"):
        ask(replace(endpoint, url="http://no-such-host.invalid/v1"))


def test_the_key_goes_to_the_server_and_into_no_error(
    server: VlmServer, endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask(endpoint)
    assert "Authorization" not in server.headers[0]
    monkeypatch.setenv(KEY, f"  {SECRET}\n")
    ask(endpoint)
    assert server.headers[1]["Authorization"] == f"Bearer {SECRET}"
    with pytest.raises(VlmError) as caught:
        ask(replace(endpoint, model="401"))  # which says the key again
    assert SECRET not in str(caught.value) and "Bearer …" in str(caught.value)
    monkeypatch.setenv(KEY, "two\nlines")
    with pytest.raises(VlmError, match="the key in VLM_API_KEY is none that a header can carry"):
        ask(endpoint)


@pytest.mark.parametrize(
    "url",
    [
        "", "localhost:8000/v1", "ftp://host/v1", "http:///v1", "http://host:99999/v1",
        "http://[::1/v1", f"http://user:{SECRET}@host/v1", f"https://host/v1?key={SECRET}",
        f"https://host/v1#{SECRET}",
    ],
)  # fmt: skip
def test_an_address_that_is_none_is_refused_without_its_secrets(url: str) -> None:
    with pytest.raises(VlmError) as caught:
        Endpoint(url, "", "", 1.0).check()
    assert "write it as http://HOST:PORT/v1" in str(caught.value)
    assert SECRET not in str(caught.value)


def test_sentences_end_where_they_end() -> None:
    assert sentence("It weighs 3.5 kg. So what?") == "It weighs 3.5 kg."
    assert sentence("Wait! Now") == "Wait!"
    assert sentence("\n> - a cup\n", cut=False) == "- a cup"
    assert len(sentence("a" * LONGEST)) == LONGEST


class Answers:
    """An asker, and what it settled."""

    def __init__(self) -> None:
        self.found: list[Answer[str]] = []
        self._news = threading.Condition()
        self.asker: Asker[str] = Asker(self._settle)

    def _settle(self, answer: Answer[str]) -> None:
        with self._news:
            self.found.append(answer)
            self._news.notify_all()

    def wait(self, count: int) -> None:
        with self._news:
            assert self._news.wait_for(lambda: len(self.found) >= count, 20)


@pytest.fixture
def answers() -> Iterator[Answers]:
    answers = Answers()
    yield answers
    answers.asker.close()


def test_the_newest_question_of_a_camera_wins_while_one_is_under_way(
    server: VlmServer, endpoint: Endpoint, answers: Answers
) -> None:
    held = replace(endpoint, model="hold")
    for name in ("one", "two", "three"):
        answers.asker.put("front", held, [PICTURE], name)
    answers.asker.put("rear", endpoint, [PICTURE], "another camera")
    answers.wait(2)
    superseded, rear = sorted(answers.found, key=lambda answer: answer.about, reverse=True)
    assert superseded.about == "two" and isinstance(superseded.outcome, SupersededError)
    assert (rear.about, rear.outcome) == ("another camera", SAYS)
    assert answers.asker.open == 2
    server.release.set()
    answers.wait(4)
    assert [answer.about for answer in answers.found[2:]] == ["one", "three"]
    assert [answer.outcome for answer in answers.found[2:]] == [SAYS, SAYS]
    assert answers.asker.open == 0 and len(server.requests) == 3


def test_what_is_cancelled_is_counted_and_never_settled(
    server: VlmServer, endpoint: Endpoint, answers: Answers
) -> None:
    held = replace(endpoint, model="hold")
    for name in ("one", "two"):
        answers.asker.put("front", held, [PICTURE], name)
    assert answers.asker.cancel() == 2
    answers.asker.put("front", endpoint, [PICTURE], "three")
    answers.wait(1)
    assert [answer.about for answer in answers.found] == ["three"]
