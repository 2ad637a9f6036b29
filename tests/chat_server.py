"""A real server on this machine that speaks enough of OpenAI's protocol for the tests."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

GOOD = (
    "FEELING: sentiment=0.5 curiosity=0.25 frustration=0.125 confusion=0 boredom=1\n"
    "MESSAGE: And then?"
)


@dataclass
class Chat:
    """What the server was asked so far, and how it answers.

    ``answer`` gets the body of a request and its number from 0 on, and returns the text of the
    completion, or status and body of anything else.
    """

    answer: Callable[[dict[str, Any], int], str | tuple[int, str]]
    bodies: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    waiting: int = 0
    most_waiting: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)
    url: str = ""


@contextmanager
def serving(answer: Callable[[dict[str, Any], int], str | tuple[int, str]]) -> Iterator[Chat]:
    """A server on a free port while the block runs."""
    chat = Chat(answer)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with chat.lock:
                number = len(chat.bodies)
                chat.bodies.append(body)
                chat.keys.append(self.headers.get("Authorization", ""))
                chat.waiting += 1
                chat.most_waiting = max(chat.most_waiting, chat.waiting)
            said = chat.answer(body, number)
            with chat.lock:
                chat.waiting -= 1
            status, text = (200, completion(said)) if isinstance(said, str) else said
            try:
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.end_headers()
                self.wfile.write(text.encode())
            except (BrokenPipeError, ConnectionResetError):
                pass  # whoever asked has gone

        def log_message(self, format: str, *args: Any) -> None:
            """Nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    chat.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield chat
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def completion(text: str | None) -> str:
    choice = {
        "index": 0,
        "finish_reason": "stop",
        "message": {"role": "assistant", "content": text},
    }
    whole = {"id": "c", "object": "chat.completion", "created": 0, "model": "m"}
    return json.dumps(whole | {"choices": [choice]})
