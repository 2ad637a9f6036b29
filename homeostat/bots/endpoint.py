"""A model behind an address that speaks the protocol of OpenAI: vLLM, llama.cpp, Ollama, others."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from typing import Any

from homeostat.bots.user_model import Request
from homeostat.config.bots import ModelBotConfig
from homeostat.errors import HomeostatError

NO_COMPLETION = "what it sends is no chat completion"
NO_KEY = (
    "no-key-needed"  # is sent where no key is named; else the client would look for one by itself
)


class Endpoint:
    """Answers of a server, several requests at once.

    A request that is refused for a reason that may pass (no connection, a time-out, status 408,
    409, 429 or above 499) is made again ``retries`` times, ever later.
    """

    def __init__(self, config: ModelBotConfig) -> None:
        """Nothing is sent yet.

        Raises:
            HomeostatError: The client is not installed, or the key is not in the environment.
        """
        try:
            import openai
        except ImportError as error:
            raise HomeostatError(
                "bot.source=endpoint needs the openai client: pip install 'homeostat[endpoint]'."
            ) from error
        self._config = config
        self._key = _key(config.api_key_env)
        self._failures = openai.OpenAIError
        self._client: Any = openai.OpenAI(
            base_url=config.url,
            api_key=self._key,
            timeout=config.timeout_s,
            max_retries=config.retries,
        )
        self._sampling = {"temperature": config.temperature, "max_tokens": config.max_tokens}
        self.identity: list[Any] = [config.url, config.model, self._sampling]

    def complete(self, requests: Sequence[Request]) -> Iterator[tuple[int, str]]:
        """See `UserModel.complete`; after the first failure nothing more is asked.

        Raises:
            HomeostatError: The server is not there, is slow, refuses, or sends something else than
                a chat completion.
        """
        failure: BaseException | None = None
        pool = ThreadPoolExecutor(self._config.concurrency)
        try:
            asked: dict[Future[str], int] = {
                pool.submit(self._ask, request): n for n, request in enumerate(requests)
            }
            for future in as_completed(asked):
                if future.cancelled():
                    continue
                error = future.exception()
                if error is None:
                    yield asked[future], future.result()
                elif failure is None:
                    failure = error
                    pool.shutdown(wait=False, cancel_futures=True)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
        if failure is not None:
            raise failure

    def _ask(self, request: Request) -> str:
        try:
            completion = self._client.chat.completions.create(
                model=self._config.model,
                messages=request.messages,
                seed=request.seed,
                **self._sampling,
            )
            text = completion.choices[0].message.content
        except self._failures as error:
            raise self._failed(str(error.__cause__ or error)) from None
        except (AttributeError, LookupError, TypeError, ValueError) as error:
            raise self._failed(NO_COMPLETION) from error
        # None where the model has said nothing, such as one that was cut off while it thought.
        if not isinstance(text, str | None):
            raise self._failed(NO_COMPLETION)
        return text or ""

    def _failed(self, why: str) -> HomeostatError:
        """One sentence without the key, which a server may have sent back."""
        said = " ".join(why.split()).replace(self._key, "***").rstrip(".")
        config = self._config
        return HomeostatError(
            f"{config.model} at bot.url={config.url} gives no answer ({said}), after up to "
            f"{config.retries + 1} attempts with bot.timeout_s={config.timeout_s:g}; see that it "
            "runs, and that bot.url, bot.model and bot.api_key_env are right. Every answer so far "
            "is kept: homeostat resume=<the run's folder> goes on from there."
        )


def _key(variable: str | None) -> str:
    if variable is None:
        return NO_KEY
    key = os.environ.get(variable)
    if not key:
        raise HomeostatError(
            f"bot.api_key_env={variable} is not set in the environment; export it, or leave "
            "bot.api_key_env null for a server that asks for no key."
        )
    return key
