"""Candidates from a server that speaks OpenAI's protocol, such as `vllm serve`."""

import logging
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2
import numpy as np

from normbt.best_of_n.candidates import Answer, Prompt
from normbt.errors import ConfigError, DataError

logger = logging.getLogger(__name__)

MOST_PER_REQUEST = 64
"""Answers that one request asks for; more are asked for in several."""
_SHOWN = 300
_PASSING = {408, 409, 425, 429, 500, 502, 503, 504}
"""Statuses of a server that may answer a moment later."""


class ServerSampler:
    """Samples answers over HTTP, several requests at a time, each tried again while the server is merely busy.

    Nothing but the given address is contacted: redirects are not followed, and proxies named in the environment are not
    used.

    Args:
        url: base address as OpenAI's clients take it, such as ``http://localhost:8000/v1``.
        model: name under which the server serves the policy.
        plain: send text prompts as they are to ``/completions`` instead of ``/chat/completions``.
        temperature: of the sampling; above 0.
        top_p: share of the probability that is sampled from.
        max_new_tokens: most tokens of an answer.
        api_key: sent as bearer token; None sends none.
        parallel: requests under way at once.
        timeout: seconds to wait for one reply.
        attempts: how often a request is tried.
        pause: seconds before the second attempt; doubled before each further one.

    Raises:
        ConfigError: the address is not an HTTP address.
    """

    prompts_per_part = 32

    def __init__(
        self,
        url: str,
        model: str,
        *,
        plain: bool = False,
        temperature: float = 1.0,
        top_p: float = 1.0,
        max_new_tokens: int = 512,
        api_key: str | None = None,
        parallel: int = 8,
        timeout: float = 600.0,
        attempts: int = 6,
        pause: float = 1.0,
    ) -> None:
        address = httpx2.URL(url)
        if address.scheme not in ("http", "https") or not address.host:
            raise ConfigError(f"'{url}' is not an address such as http://localhost:8000/v1.")
        self.url = url.rstrip("/") + ("/v1" if address.path in ("", "/") else "")
        self.plain, self.parallel, self.attempts, self.pause = plain, parallel, attempts, pause
        self.asked: dict[str, Any] = {
            "model": model,
            "temperature": temperature,
            "top_p": top_p,
            "max_tokens": max_new_tokens,
        }
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self.client = httpx2.Client(headers=headers, timeout=timeout, trust_env=False, follow_redirects=False)

    def describe(self) -> dict[str, Any]:
        """Every setting that decides the answers, by name."""
        return {"server": self.url, "plain": self.plain, **self.asked}

    def __call__(self, prompts: Sequence[Prompt], samples: int, *, seed: int) -> list[list[Answer]]:
        """The answers to each prompt. Whether the same seed gives the same answers is up to the server."""
        requests = [
            (place, min(MOST_PER_REQUEST, samples - start))
            for place in range(len(prompts))
            for start in range(0, samples, MOST_PER_REQUEST)
        ]
        seeds = np.random.default_rng(seed).integers(0, 2**31, size=len(requests)).tolist()
        answers: list[list[Answer]] = [[] for _ in prompts]
        with ThreadPoolExecutor(self.parallel) as pool:
            replies = pool.map(
                lambda request, one_seed: self._ask(prompts[request[0]], request[1], one_seed), requests, seeds
            )
            for (place, _), reply in zip(requests, replies, strict=True):
                answers[place] += reply
        return answers

    def _ask(self, prompt: Prompt, count: int, seed: int) -> list[Answer]:
        body = {**self.asked, "n": count, "seed": seed}
        if self.plain:
            if not isinstance(prompt.prompt, str):
                raise DataError(f"Prompt {prompt.identity} is a conversation: it cannot be sent as plain text.")
            reply = self._post("/completions", {**body, "prompt": prompt.prompt})
        else:
            text = prompt.prompt
            messages = [{"role": "user", "content": text}] if isinstance(text, str) else text
            reply = self._post("/chat/completions", {**body, "messages": messages})
        try:
            found = [
                Answer(
                    (choice["text"] if self.plain else choice["message"]["content"]) or "",
                    finished=choice.get("finish_reason") == "stop",
                )
                for choice in reply["choices"]
            ]
        except (KeyError, TypeError, AttributeError) as error:
            raise DataError(
                f"{self.url} did not reply with choices of OpenAI's protocol: {str(reply)[:_SHOWN]}"
            ) from error
        if len(found) != count:
            raise DataError(
                f"{self.url} gave {len(found)} answers to prompt {prompt.identity}, {count} were asked for."
            )
        return found

    def _post(self, path: str, body: dict[str, Any]) -> Any:
        problem = ""
        for attempt in range(self.attempts):
            if attempt:
                time.sleep(self.pause * 2 ** (attempt - 1))
            try:
                reply = self.client.post(self.url + path, json=body)
            except httpx2.TransportError as error:
                problem = f"{type(error).__name__}: {error}"
                logger.info("%s: %s; attempt %d of %d.", self.url, problem, attempt + 1, self.attempts)
                continue
            if reply.status_code == 200:
                try:
                    return reply.json()
                except ValueError as error:
                    raise DataError(f"{self.url} did not reply with JSON: {reply.text[:_SHOWN]}") from error
            problem = f"status {reply.status_code}: {reply.text[:_SHOWN]}"
            if reply.status_code not in _PASSING:
                raise ConfigError(
                    f"{self.url}{path} refused the request with {problem}. Check the address, --policy (the name the "
                    "server gives the model) and the key."
                )
            logger.info("%s: %s; attempt %d of %d.", self.url, problem, attempt + 1, self.attempts)
        raise ConfigError(
            f"{self.url}{path} did not answer in {self.attempts} attempts (last: {problem}). What was sampled so "
            "far is kept: the same command goes on."
        )
