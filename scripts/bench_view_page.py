"""What the page of `sandbox-rl view` costs in a real Chromium, and what it costs a run that is looked at.

    python scripts/bench_view_page.py episode              # 300,000 events: opens in under a second, scrolls
    python scripts/bench_view_page.py watched [--pairs 4] [KEY=VALUE…]  # the quickstart, looked at or not

`watched` trains the recipe once for its warm-up and then in pairs, of which one run has the page open in
Chromium; which comes first alternates. Compared is the time from the first to the last update. Fails where
looking on makes a run slower by more than 2 %; for a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import orjson

sys.path.insert(0, str(Path(__file__).parents[1]))

from sandbox_rl.journal.columns import pack, with_checksum
from sandbox_rl.view.server import Viewer
from tests.browser import Browser, Page

EVENTS = 300_000
OPENS_S = 1.0
SLOWER = 1.02
PORT = 8765
LONG, SHORT = "train-000000-0000", "train-000000-0001"
TURNS = "document.querySelectorAll('.turn[id]').length"


def make_long_episode(run: Path) -> None:
    """A run with one episode of `EVENTS` turns, 127 MB of text."""
    (run / "journal").mkdir(parents=True)
    content, columns = pack([list(range(8)), list(range(4))], [-0.5] * 8, 0)
    (run / "journal" / "0000-0000.tokens").write_bytes(content)
    where = {"at": 0, "lengths": columns.lengths, "crc": columns.crc, "logprobs": 8}
    none = {"at": 0, "lengths": [], "crc": 0, "logprobs": 0}
    now = 1_795_000_000.0
    with (run / "journal" / "0000-0000.jsonl").open("wb") as file:

        def write(event: dict[str, object]) -> int:
            at = file.tell()
            file.write(with_checksum(orjson.dumps(event)))
            return at

        about = {"task_id": "long", "domain": "math", "seed": 0, "phase": "train", "step": 0}
        prompt = {"at": 0, "lengths": [0], "crc": 0, "logprobs": 0}
        last = write({"event": "started", "episode_id": LONG, **about, "time": now, "columns": prompt})
        call = {"name": "execute_bash", "arguments": {"command": "seq 10"}}
        seen = {"tool": "execute_bash", "text": "x" * 40, "failure": None, "submitted": False}
        turn = {"calls": [call], "observations": [{**seen, "exit_code": 0, "seconds": 0.01}]}
        turn |= {"finish_reason": "stop", "weight_version": 0, "generation_seconds": 0.1}
        for number in range(EVENTS):
            head = {"event": "turn", "episode_id": LONG, "prev": last, "index": number, "time": now}
            last = write({**head, **turn, "execution_seconds": 0.01, "columns": where})
        ended = {"event": "ended", "episode_id": LONG, "prev": last, "turns": EVENTS, "time": now + 9}
        ended |= {"stop": "max_turns", "fault": "", "reward": 0.0, "reward_parts": {}, "reward_detail": ""}
        ended |= {"answer": {"status": "ok", "text": "42"}, "masked": False, "scoring_seconds": 0.1}
        ended |= {"seconds": 9.0, "sampled": 8 * EVENTS, "observed": 4 * EVENTS}
        ended |= {"generation_seconds": 1.0, "execution_seconds": 1.0, "columns": none}
        write(ended)
        last = write({"event": "started", "episode_id": SHORT, **about, "time": now, "columns": prompt})
        write({**ended, "episode_id": SHORT, "prev": last, "turns": 0, "sampled": 0, "observed": 0})


async def seconds_until(page: Page, address: str, shown: str) -> float:
    """From the click until an expression is true."""
    started = time.perf_counter()
    await page.evaluate(f"location.hash = {json.dumps(address)}")
    await page.wait(shown)
    return time.perf_counter() - started


async def open_long_episode(directory: Path) -> dict[str, float]:
    """Seconds until its first turns, more of them, and its tokens are on the screen."""
    run = directory / "run"
    make_long_episode(run)
    size = (run / "journal" / "0000-0000.jsonl").stat().st_size / 1e6
    print(f"an episode of {EVENTS:,} events, {size:.0f} MB")
    os.environ["XDG_CACHE_HOME"] = str(directory / "cache")
    async with Viewer([run]) as viewer, Browser() as browser:
        page = await browser.page()
        await page.goto(viewer.url)
        known = "fetch('api/overview').then((r) => r.json()).then((o) => o.behind === 0)"
        while not await page.evaluate(known):  # noqa: ASYNC110  # the index is made, once
            await asyncio.sleep(0.5)
        # Where the long one's events lie is remembered until another episode is looked at.
        await seconds_until(page, f"#episode={SHORT}", f"document.title.startsWith('{SHORT}')")
        await page.wait("document.querySelector('.turn.outcome')")
        found = {"opened": await seconds_until(page, f"#episode={LONG}", f"{TURNS} >= 40")}
        started = time.perf_counter()
        await page.evaluate("window.scrollTo(0, document.body.scrollHeight)")
        await page.wait(f"{TURNS} >= 80")
        found["scrolled on"] = time.perf_counter() - started
        await page.evaluate("document.querySelector('.jump').value = 250000")
        started = time.perf_counter()
        await page.evaluate("document.querySelector('.jump').dispatchEvent(new Event('change'))")
        await page.wait("document.querySelector('#turn-249999')")
        found["turn 250,000"] = time.perf_counter() - started
        shown = "document.querySelectorAll('.token').length > 1000"
        found["tokens"] = await seconds_until(page, f"#episode={LONG}&tab=tokens", shown)
        later = f"#episode={LONG}&tab=tokens&from=3000000"
        found["tokens from 3,000,000 on"] = await seconds_until(
            page, later, f"{shown} && document.querySelector('.token-facts').textContent.includes('3000001')"
        )
        assert page.errors == [], page.errors
    return found


def train(directory: Path, name: str, watched: bool, overrides: Sequence[str] = ()) -> float:
    """Seconds from the first to the last update of a run, with the page open on it or not."""
    settings = [f"name={name}", f"output_dir={directory}", *overrides]
    command = [sys.executable, "-m", "sandbox_rl", "train", "quickstart", *settings]
    run = directory / name
    trained = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    if watched:
        while not (run / "journal").is_dir() and trained.poll() is None:
            time.sleep(0.2)
        server = subprocess.Popen(
            [sys.executable, "-m", "sandbox_rl", "view", str(run), "--port", str(PORT)],
            stdout=subprocess.DEVNULL,
        )
        asyncio.run(_look_on(trained))
        server.terminate()
        server.wait()
    if trained.wait() != 0:
        sys.exit(f"{' '.join(command)}: exit code {trained.returncode}")
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    times = [line["time"] for line in lines if "loss" in line]
    return float(times[-1] - times[0])


async def _look_on(trained: subprocess.Popen[bytes]) -> None:
    """The first screen, as long as the run goes on."""
    async with Browser() as browser:
        page = await browser.page()
        while trained.poll() is None:
            try:
                await page.goto(f"http://127.0.0.1:{PORT}/")
                break
            except (AssertionError, TimeoutError):  # the server is not there yet
                await asyncio.sleep(0.5)
        await asyncio.to_thread(trained.wait)


def watch(pairs: int, directory: Path, overrides: Sequence[str]) -> float:
    """The geometric mean of the pairs' ratios, looked at to not."""
    train(directory, "warm", False, ["grpo.max_steps=1", *overrides])
    ratios = []
    for pair in range(pairs):
        order = (True, False) if pair % 2 else (False, True)
        took = {watched: train(directory, f"run-{pair}-{watched}", watched, overrides) for watched in order}
        ratios.append(took[True] / took[False])
        seconds = f"{took[False]:.1f} s, looked at {took[True]:.1f} s"
        print(f"pair {pair + 1}: {seconds}, {ratios[-1]:.4f}", flush=True)
    return statistics.geometric_mean(ratios)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("what", choices=("episode", "watched"))
    parser.add_argument("--pairs", type=int, default=4)
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="of the quickstart, for `watched`")
    options = parser.parse_intermixed_args()
    with tempfile.TemporaryDirectory() as temporary:
        if options.what == "episode":
            found = asyncio.run(open_long_episode(Path(temporary)))
            for name, seconds in found.items():
                print(f"{name:<26} {seconds:6.3f} s   at most {OPENS_S:g}")
            late = [name for name, seconds in found.items() if seconds > OPENS_S]
            if late:
                sys.exit(f"bench_view_page: over its limit: {', '.join(late)}")
            return
        ratio = watch(options.pairs, Path(temporary), options.overrides)
        print(f"looked at to not: {ratio:.4f}, at most {SLOWER:g}")
        if ratio > SLOWER:
            sys.exit("bench_view_page: looking on makes the run slower than that")


if __name__ == "__main__":
    main()
