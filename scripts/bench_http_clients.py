"""What the `openai` package would cost in place of our HTTP client, for its own protocol.

    pip install openai, then python scripts/bench_http_clients.py

Imports (each in a process of its own), processor time per request of long conversations over loopback, and
what becomes of a reply that breaks off or is no chat completion.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any

from sandbox_rl.http_client import Address, HttpClient
from sandbox_rl.policies.fake_endpoint import FakeEndpoint, Raw, said

ODD = {
    "cut off": Raw(b'{"choices": [{"message"', promised=1_000, hang_up=True),
    "no JSON": Raw(b"<html>busy</html>"),
    "no choices": Raw(b'{"choices": null}'),
    "content is a number": Raw(b'{"choices": [{"message": {"content": 7}}]}'),
    "200 and an error": Raw(b'{"error": {"message": "overloaded"}}'),
}
Ask = Callable[[list[dict[str, str]]], Awaitable[Any]]


def serve(pipe: Any) -> None:
    """An endpoint in a process of its own; replies by the last message."""

    def script(body: Any, number: int) -> Raw:
        return ODD.get(body["messages"][-1]["content"], said("ok"))

    async def forever() -> None:
        async with FakeEndpoint(script) as endpoint:
            pipe.send(endpoint.base_url)
            await asyncio.Event().wait()

    asyncio.run(forever())


def import_seconds(module: str, repeats: int) -> float:
    def once(code: str) -> float:
        started = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], check=True)
        return time.perf_counter() - started

    return min(once(f"import {module}") for _ in range(repeats)) - min(once("pass") for _ in range(repeats))


async def processor_ms(ask: Ask, messages: list[dict[str, str]], count: int, at_once: int) -> float:
    """Of this process, per request."""
    free = asyncio.Semaphore(at_once)

    async def one() -> None:
        async with free:
            await ask(messages)

    await one()
    started = time.process_time()
    await asyncio.gather(*(one() for _ in range(count)))
    return 1e3 * (time.process_time() - started) / count


async def outcome(ask: Ask, content: str) -> str:
    try:
        answer = await ask([{"role": "user", "content": content}])
        return f"accepted: {str(getattr(answer, 'choices', answer))[:60]}"
    except Exception as error:
        return f"{type(error).__name__}: {str(error)[:60]}"


async def measure(url: str, count: int, kilobytes: int) -> None:
    from openai import AsyncOpenAI  # type: ignore[import-not-found,unused-ignore]

    text = "sand box " * (kilobytes * 1_000 // 90)
    messages = [{"role": "user", "content": text} for _ in range(10)]
    theirs = AsyncOpenAI(base_url=url, api_key="x", max_retries=0, timeout=60)
    async with HttpClient(Address(url)) as ours:
        ways: dict[str, Ask] = {
            "ours": lambda m: ours.json(
                "POST", "/chat/completions", {"model": "m", "messages": m, "max_tokens": 9}, timeout=60
            ),
            "openai": lambda m: theirs.chat.completions.create(model="m", messages=m, max_tokens=9),
        }
        for name, ask in ways.items():
            spent = [await processor_ms(ask, messages, count, 32) for _ in range(3)]
            print(f"{name}: {min(spent):.2f} ms of processor per request of {kilobytes} kB, 32 at once")
        for odd in ODD:
            for name, ask in ways.items():
                print(f"{odd}, {name}: {await outcome(ask, odd)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--requests", type=int, default=300)
    parser.add_argument("--kilobytes", type=int, default=200, help="of one conversation")
    chosen = parser.parse_args()
    for module in ("sandbox_rl.http_client", "openai"):
        print(f"import {module}: {import_seconds(module, 3):.2f} s")
    context = multiprocessing.get_context("spawn")
    mine, other = context.Pipe()
    server = context.Process(target=serve, args=(other,), daemon=True)
    server.start()
    try:
        asyncio.run(measure(mine.recv(), chosen.requests, chosen.kilobytes))
    finally:
        server.terminate()
        server.join()


if __name__ == "__main__":
    main()
