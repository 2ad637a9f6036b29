"""Users whom a server plays: a real one, that is whole, slow, down, or talks rubbish."""

from __future__ import annotations

import socket
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from chat_server import GOOD, completion, serving

from homeostat.bots.endpoint import Endpoint
from homeostat.bots.model import ModelBots
from homeostat.bots.user_model import Request, completed
from homeostat.config.bots import ModelBotConfig
from homeostat.config.register import config_part
from homeostat.errors import HomeostatError
from homeostat.types import Conversation, Turn

pytestmark = pytest.mark.usefixtures("cache")
KEY = "sk-secret-0123456789"


def settings(url: str, **changes: Any) -> ModelBotConfig:
    config: ModelBotConfig = config_part(
        "bot=model",
        **{"source": "endpoint", "url": url, "model": "m", "retries": 0, "timeout_s": 5.0}
        | changes,
    )
    return config


def requests(*texts: str) -> list[Request]:
    return [Request(Conversation((Turn("user", text),)), 7) for text in texts]


def ask(config: ModelBotConfig, *texts: str) -> Sequence[str]:
    return completed(Endpoint(config), requests(*texts))


def test_a_request_holds_all_that_the_answer_follows_from() -> None:
    with serving(lambda body, _: body["messages"][0]["content"].upper()) as chat:
        assert ask(settings(chat.url, temperature=0.5, max_tokens=9), "a", "b") == ["A", "B"]
    assert sorted(chat.bodies, key=str) == [
        {
            "model": "m",
            "messages": [{"role": "user", "content": text}],
            "seed": 7,
            "temperature": 0.5,
            "max_tokens": 9,
        }
        for text in ("a", "b")
    ]


def test_as_many_requests_wait_at_once_as_may() -> None:
    def slow(_: dict[str, Any], number: int) -> str:
        time.sleep(0.2)
        return str(number)

    with serving(slow) as chat:
        ask(settings(chat.url, concurrency=3), *"abcdef")
    assert chat.most_waiting == 3


def test_users_are_played_by_the_server() -> None:
    with serving(lambda _, number: GOOD if number else "FEELING: good\nMESSAGE: Hm.") as chat:
        config = settings(chat.url, retries=1)
        bots = ModelBots(config)
        bots.model = Endpoint(config)
        answer = bots.spawn(0).answer("Try this.")
    assert answer.text == "And then?"
    assert answer.affect == {
        "sentiment": 0.5,
        "curiosity": 0.25,
        "frustration": 0.125,
        "confusion": 0.0,
        "boredom": 1.0,
    }
    assert [body["messages"][-1]["content"] for body in chat.bodies] == ["Try this."] * 2


def test_a_completion_without_content_has_no_words() -> None:
    with serving(lambda *_: (200, completion(None))) as chat:
        assert ask(settings(chat.url), "a") == [""]


# --- what goes wrong ----------------------------------------------------------------------------


def test_a_failure_that_passes_is_asked_again() -> None:
    with serving(lambda _, number: "A" if number else (500, "{}")) as chat:
        assert ask(settings(chat.url, retries=1), "a") == ["A"]
    assert len(chat.bodies) == 2


@pytest.mark.parametrize(
    ("status", "body", "attempts", "said"),
    [
        (500, '{"error": {"message": "out of memory"}}', 2, "500"),
        (404, '{"error": {"message": "no model m"}}', 1, "no model m"),
        (200, "<html>hello</html>", 1, "no chat completion"),
        (200, "{}", 1, "no chat completion"),
        (200, '"hello"', 1, "no chat completion"),
        (200, '{"choices": []}', 1, "no chat completion"),
        (200, '{"choices": [{"message": {"content": [1]}}]}', 1, "no chat completion"),
    ],
)
def test_a_server_that_refuses_or_talks_rubbish_ends_in_a_sentence(
    status: int, body: str, attempts: int, said: str
) -> None:
    with serving(lambda *_: (status, body)) as chat:
        with pytest.raises(HomeostatError, match=said) as caught:
            ask(settings(chat.url, retries=1), "a")
        assert chat.url in str(caught.value)
    assert "Every answer so far is kept: homeostat resume=" in str(caught.value)
    assert len(chat.bodies) == attempts


def test_a_server_that_is_down_ends_in_a_sentence() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    with pytest.raises(HomeostatError, match="Connection refused"):
        ask(settings(url), "a")


def test_a_server_that_hangs_is_given_up() -> None:
    def hang(*_: Any) -> str:
        time.sleep(3)
        return "late"

    began = time.monotonic()
    with serving(hang) as chat, pytest.raises(HomeostatError, match=r"timed out.*timeout_s=0\.3"):
        ask(settings(chat.url, timeout_s=0.3), "a")
    assert time.monotonic() - began < 2.5


def test_one_failure_costs_no_answer_that_was_there_or_on_its_way() -> None:
    def third_fails(body: dict[str, Any], _: int) -> str | tuple[int, str]:
        text = body["messages"][0]["content"]
        time.sleep({"a": 0.0, "b": 0.6, "c": 0.2}.get(text, 0.0))
        return (400, "{}") if text == "c" else text.upper()

    with serving(third_fails) as chat:
        config = settings(chat.url, concurrency=3)
        with pytest.raises(HomeostatError, match="400"):
            ask(config, *"abc", *"defghij")
        asked = [body["messages"][0]["content"] for body in chat.bodies]
        chat.answer = lambda body, _: body["messages"][0]["content"].upper()
        chat.bodies.clear()
        assert ask(config, *"abcdefghij") == list("ABCDEFGHIJ")
        again = [body["messages"][0]["content"] for body in chat.bodies]
    assert "c" in again
    assert not {"a", "b"} & set(again)
    assert sorted({*asked} - {"c"} | {*again}) == list("abcdefghij")
    assert len(again) == len(set(again))


# --- the key ------------------------------------------------------------------------------------


def test_the_key_comes_from_the_environment_and_goes_to_the_server_alone(
    monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    monkeypatch.setenv("MY_KEY", KEY)
    with serving(lambda *_: "A") as chat:
        config = settings(chat.url, api_key_env="MY_KEY")
        endpoint = Endpoint(config)
        completed(endpoint, requests("a"))
        assert chat.keys == [f"Bearer {KEY}"]
        assert KEY not in f"{config} {endpoint.identity}"
        chat.answer = lambda *_: (401, f'{{"error": {{"message": "wrong key {KEY}"}}}}')
        with pytest.raises(HomeostatError, match=r"wrong key \*\*\*") as caught:
            completed(endpoint, requests("b"))
    assert KEY not in str(caught.value)
    files = [path for path in cache.rglob("*") if path.is_file()]
    assert files
    assert not [path for path in files if KEY in path.read_text() + str(path)]


def test_no_key_is_sent_where_none_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with serving(lambda *_: "A") as chat:
        ask(settings(chat.url), "a")
    assert KEY not in chat.keys[0]


@pytest.mark.parametrize("value", [None, ""])
def test_a_key_that_is_not_there_is_missed(
    monkeypatch: pytest.MonkeyPatch, value: str | None
) -> None:
    monkeypatch.delenv("MY_KEY", raising=False)
    if value is not None:
        monkeypatch.setenv("MY_KEY", value)
    with pytest.raises(HomeostatError, match=r"bot\.api_key_env=MY_KEY is not set.*export it"):
        Endpoint(settings("http://localhost/v1", api_key_env="MY_KEY"))


def test_without_the_client_a_sentence_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(HomeostatError, match=r"pip install 'homeostat\[endpoint\]'"):
        Endpoint(settings("http://localhost/v1"))
