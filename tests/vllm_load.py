"""A client of an OpenAI-compatible server that keeps its own clock: what it asked, what came when, how it ended."""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import anyio
import httpx

from vllm_server import running_first

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

__all__ = ["Answer", "complete", "run"]

TIMEOUT_S = 120.0


@dataclass
class Answer:
    """One request as its client saw it; times are ``perf_counter_ns``, ``epoch_ns()`` turns them into epoch."""

    request_id: str
    """What we sent as X-Request-Id; vLLM makes ``cmpl-<it>-0`` of it."""
    sent_ns: int = 0
    ended_ns: int = 0
    status: int | None = None
    finish_reasons: dict[int, str] = field(default_factory=dict)
    """By index of the choice: one, unless n was asked for."""
    chunks_ns: dict[int, list[int]] = field(default_factory=dict)
    """When each piece of a choice came; the client's time to first token is ``chunks_ns[0][0] - sent_ns``."""
    texts: dict[int, str] = field(default_factory=dict)
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    """Of all choices together; None where the answer was cut off."""
    cached_tokens: int | None = None
    """Of the prompt; told only with ``--enable-prompt-tokens-details``."""
    aborted: bool = False
    """Whether we closed the connection before its end."""
    error: str | None = None
    _epoch_offset_ns: int = 0

    @property
    def finish_reason(self) -> str | None:
        return self.finish_reasons.get(0)

    def epoch_ns(self, time_ns: int) -> int:
        return time_ns + self._epoch_offset_ns


async def complete(
    client: httpx.AsyncClient,
    request_id: str,
    prompt: Any = "hello world",
    *,
    abort_after: int | None = None,
    give_up_s: float | None = None,
    headers: dict[str, str] | None = None,
    chat: bool = False,
    stream: bool = True,
    seen: list[Answer] | None = None,
    **body: Any,
) -> Answer:
    """Ask one ``/v1/completions`` or, for ``chat``, ``/v1/chat/completions``.

    Args:
        client: its base URL is the server's.
        request_id: sent as X-Request-Id.
        prompt: a text, or a list of token ids; what the user says in a chat.
        abort_after: close the connection after so many pieces.
        give_up_s: close the connection after so many seconds, whatever came.
        headers: more of them, such as traceparent.
        chat: which of the two.
        stream: whether the answer comes in pieces.
        seen: the answer is appended to it as soon as it is asked for, for who watches from another thread.
        body: more of the request, such as max_tokens, stop, n; 16 tokens, greedy, end of text ignored unless given.
    """
    answer = Answer(request_id)
    if seen is not None:
        seen.append(answer)
    said = {"messages": [{"role": "user", "content": prompt}]} if chat else {"prompt": prompt}
    asked = {
        "model": "tiny",
        **said,
        "stream": stream,
        **({"stream_options": {"include_usage": True}} if stream else {}),
        "max_tokens": 16,
        "temperature": 0.0,
        "ignore_eos": True,
        **body,
    }
    answer.sent_ns, answer._epoch_offset_ns = time.perf_counter_ns(), time.time_ns() - time.perf_counter_ns()
    try:
        sent = {"X-Request-Id": request_id, **(headers or {})}
        path = "/v1/chat/completions" if chat else "/v1/completions"
        # anyio's, since httpx closes its connections behind anyio's shields: asyncio's leaves some of them open.
        with anyio.fail_after(give_up_s):
            async with client.stream("POST", path, json=asked, headers=sent) as response:
                answer.status = response.status_code
                if response.status_code != 200:
                    answer.error = (await response.aread()).decode(errors="replace")
                elif stream:
                    await _read(answer, response, abort_after)
                else:
                    _take(answer, json.loads(await response.aread()), time.perf_counter_ns())
    except TimeoutError:
        answer.aborted = True
    except httpx.HTTPError as e:
        answer.error = f"{type(e).__name__}: {e}"
    answer.ended_ns = time.perf_counter_ns()
    return answer


async def _read(answer: Answer, response: httpx.Response, abort_after: int | None) -> None:
    pieces = 0
    async for line in _lines(response):
        now_ns = time.perf_counter_ns()
        if not line.startswith(b"data: ") or line == b"data: [DONE]":
            continue
        piece = json.loads(line[len(b"data: ") :])
        if "error" in piece:
            answer.error = str(piece["error"])
            return
        _take(answer, piece, now_ns)
        pieces += len(piece["choices"])
        if abort_after is not None and pieces >= abort_after:
            answer.aborted = True
            return


async def _lines(response: httpx.Response) -> AsyncIterator[bytes]:
    """Return the lines of an answer; httpx's own also end at what else Unicode calls the end of a line."""
    rest = b""
    async for part in response.aiter_bytes():
        *lines, rest = (rest + part).split(b"\n")
        for line in lines:
            yield line


def _take(answer: Answer, piece: dict[str, Any], now_ns: int) -> None:
    """Take over a piece of an answer, or all of it."""
    if usage := piece.get("usage"):
        answer.prompt_tokens, answer.completion_tokens = usage["prompt_tokens"], usage["completion_tokens"]
        answer.cached_tokens = (usage.get("prompt_tokens_details") or {}).get("cached_tokens")
    for choice in piece["choices"]:
        index = choice["index"]
        text = choice.get("text") or choice.get("delta", choice.get("message", {})).get("content") or ""
        answer.chunks_ns.setdefault(index, []).append(now_ns)
        answer.texts[index] = answer.texts.get(index, "") + text
        if choice["finish_reason"]:
            answer.finish_reasons[index] = choice["finish_reason"]


def run(base_url: str, asked: list[dict[str, Any]], concurrency: int = 1) -> list[Answer]:
    """Ask everything, so many at a time, and return the answers in the order of the questions.

    Each is the arguments of ``complete()``; ``request_id`` is ``r-<place>`` unless given, ``delay_s`` waits before.
    """

    async def all_of_it() -> list[Answer]:
        turn = asyncio.Semaphore(concurrency)
        # A server closes what is idle for 5 s, and what is sent to it in that moment is lost.
        idle = {"max_keepalive_connections": concurrency, "keepalive_expiry": 1.0}
        limits = httpx.Limits(max_connections=concurrency, **idle)
        async with httpx.AsyncClient(base_url=base_url, timeout=TIMEOUT_S, limits=limits) as client:

            async def one(place: int, question: dict[str, Any]) -> Answer:
                await asyncio.sleep(question.pop("delay_s", 0.0))
                async with turn:
                    return await complete(client, **{"request_id": f"r-{place}", **question})

            return await asyncio.gather(*(one(k, dict(question)) for k, question in enumerate(asked)))

    with running_first():
        return asyncio.run(all_of_it())
