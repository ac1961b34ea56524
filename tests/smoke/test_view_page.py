"""The page of `sandbox-rl view` in a real Chromium: every screen, hostile text, keys, exported pages."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
from pathlib import Path

import pytest
import pytest_asyncio

from sandbox_rl.errors import ConfigError
from sandbox_rl.journal import Journal
from sandbox_rl.view.export import export_page
from sandbox_rl.view.server import Viewer
from tests.browser import CHROMIUM, Browser, Page
from tests.unit.view.run_on_disk import GROUP, bash, make_run, rollout, write_episode

if CHROMIUM is None and not os.environ.get("CI"):
    pytest.skip("no Chromium on this machine; scripts/setup dev installs it", allow_module_level=True)

pytestmark = pytest.mark.asyncio(loop_scope="module")

ID = "train-000003-0001"
TITLE = "document.querySelector('main h1').textContent"
SCREENS = {
    "run": "",
    "episodes": "#view=episodes&sort=started&desc=1",
    "episode": f"#episode={ID}",
    "tokens": f"#episode={ID}&tab=tokens",
    "group": "#view=group&episode=train-000003-0000",
    "task": "#task=task-3",
    "timeline": "#step=3",
    "suspicions": "#view=suspicions",
    "compare": "#view=compare&run=0&other=1",
    "recipe": "#view=recipe",
}
HOSTILE = (
    "<script>window.pwned=1</script>",
    "<img src=x onerror=window.pwned=1>",
    "<svg onload=window.pwned=1>",
    "<iframe src=javascript:window.pwned=1></iframe>",
    "<iframe srcdoc='<script>parent.pwned=1</script>'></iframe>",
    "<body onload=window.pwned=1>",
    "<a href=javascript:window.pwned=1>x</a>",
    "<style>*{display:none}</style>",
    "<link rel=stylesheet href=http://evil.example/x.css>",
    "<meta http-equiv=refresh content='0;url=http://evil.example'>",
    "<base href=http://evil.example/>",
    "<form action=http://evil.example><input autofocus onfocus=window.pwned=1></form>",
    "<object data=javascript:window.pwned=1></object>",
    "<embed src=javascript:window.pwned=1>",
    "<details open ontoggle=window.pwned=1>x</details>",
    "<video><source onerror=window.pwned=1></video>",
    "<template><script>window.pwned=1</script></template>",
    "<math><mtext></mtext><mglyph><style><img src=x onerror=window.pwned=1>",
    "</script><script>window.pwned=1</script>",
    "</textarea><script>window.pwned=1</script>",
    "--><script>window.pwned=1</script>",
    "<!--<script>",
    "]]><script>window.pwned=1</script>",
    "'\"><script>window.pwned=1</script>",
    "javascript:window.pwned=1",
    "${window.pwned=1}",
    "{{constructor.constructor('window.pwned=1')()}}",
    "&lt;script&gt;window.pwned=1&lt;/script&gt;",
    "\x1b[2J\x1b]0;title\x07\x1b[31mred",
    "\x1b]8;;http://evil.example\x1b\\link\x1b]8;;\x1b\\",
    "\u202egnp.exe",
    "\u2066a\u2069\u200e\u200f\u061c",
    "a\u200bb\u200cc\u200dd\ufeffe\u2060f",
    "\U000e0041\U000e0042tags",
    "\x00\x01\x02\x08\x0b\x0c\x7f\x85",
    "\ud800 half",
    "a" * 300_000,
    "\n" * 20_000,
    "Z" + "\u0301" * 5_000,
    "\t".join("x" * 3_000),
    "\r\rover\rwritten",
)
INVISIBLE = r"/[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u061c\u200b-\u200f\u202a-\u202e\u2060-\u2069\ufeff]/"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser():
    async with Browser() as browser:
        yield browser


@pytest_asyncio.fixture(loop_scope="module")
async def page(browser):
    page = await browser.page()
    yield page
    await page.close()


async def visit(page: Page, base: str, screens: dict[str, str]) -> None:
    """Every screen is drawn without an error."""
    for name, where in screens.items():
        await page.goto(base + where)
        assert (
            await page.evaluate("document.querySelector('main h1').textContent") != "This cannot be shown"
        ), name
        assert page.errors == [], name


async def violations(page: Page) -> list[str]:
    """What axe-core finds, once the page has been drawn."""
    found = importlib.util.find_spec("axe_core_python")
    if found is None or found.origin is None:
        pytest.skip("axe-core is not installed; scripts/setup dev installs it")
    await page.evaluate((Path(found.origin).parent / "axe.min.js").read_text())
    result = await page.evaluate("axe.run(document, {resultTypes: ['violations']})")
    return [f"{v['id']}: {v['nodes'][0]['html'][:200]}" for v in result["violations"]]


async def test_every_screen_is_drawn_from_this_machine_alone(tmp_path, page):
    runs = [make_run(tmp_path / "first"), make_run(tmp_path / "second", groups=8)]
    async with Viewer(runs) as viewer:
        await visit(page, viewer.url, SCREENS)
        asked = [url for url in page.asked if not url.startswith((viewer.url, "about:", "data:"))]
        assert asked == []
        await page.goto(viewer.url)
        assert await page.evaluate("document.querySelectorAll('.chart canvas').length") >= 6
        assert "learning" in await page.evaluate("document.querySelector('h1').textContent")


async def test_an_evaluation_says_its_accuracy(tmp_path, page):
    directory = make_run(tmp_path / "measured", ledger=False)
    for name in ("metrics.jsonl", "history.jsonl", "recipe.yaml"):
        (directory / name).unlink()
    (directory / "evaluation.json").write_text('{"format": 1, "name": "offline", "model": "someone/model"}')
    mean = {"value": 0.75, "low": 0.5, "high": 0.9, "tasks": 20}
    modes = {mode: {"accuracy": mean, "parts": {}, "episodes": 25} for mode in ("sandbox", "plain")}
    (directory / "results.json").write_text(json.dumps({"format": 2, "modes": modes}))
    async with Viewer([directory]) as viewer:
        await visit(page, viewer.url, {"run": "", "episodes": "#view=episodes", "episode": f"#episode={ID}"})
        assert "never trained on" in await page.evaluate("document.querySelector('.why').textContent")
        await page.goto(viewer.url)
        title = await page.evaluate(TITLE)
        assert title.count("75.0 % [50.0 %, 90.0 %]") == 2


@pytest.mark.slow
async def test_every_screen_is_accessible(tmp_path, page):
    runs = [make_run(tmp_path / "first"), make_run(tmp_path / "second", groups=8)]
    async with Viewer(runs) as viewer:
        for name, where in SCREENS.items():
            await page.goto(viewer.url + where)
            assert await violations(page) == [], name
            await page.press("d")  # the other colours
            await page.wait("document.documentElement.dataset.theme && document.querySelector('main h1')")
            assert await violations(page) == [], f"{name}, the other colours"


def plant(journal: Journal) -> None:
    """A group whose episodes hold some of the texts each, everywhere where a policy can write."""
    for number in range(0, len(HOSTILE), 8):
        texts = HOSTILE[number : number + 8]
        id, together = f"train-001000-{number // 8:04d}", "\n".join(text[:60_000] for text in texts)
        turns = bash(*((text, text) for text in texts))
        done = rollout(id, turns, together, 1.0, task=f"task {texts[0][:60]}", detail=together[:5_000])
        write_episode(journal, done)


async def test_hostile_text_is_inert(tmp_path, page):
    assert len(HOSTILE) >= 40
    async with Viewer([make_run(tmp_path / "run", change=plant)]) as viewer:
        screens = ["#view=episodes&step=0", "#view=group&episode=train-001000-0000", "#view=suspicions"]
        for number in range(-(-len(HOSTILE) // 8)):
            screens += [
                f"#episode=train-001000-{number:04d}",
                f"#episode=train-001000-{number:04d}&tab=tokens",
            ]
        for where in screens:
            await page.goto(viewer.url + where)
            assert page.errors == [], where
            said = await page.evaluate(
                f"({{pwned: window.pwned, odd: {INVISIBLE}.test(document.body.textContent), "
                "wide: document.documentElement.scrollWidth, "
                "made: document.querySelectorAll('main :is(script, img, iframe, style, embed)').length})"
            )
            assert said.get("pwned") is None, where
            assert (said["odd"], said["made"]) == (False, 0), where
            assert said["wide"] <= 1280, where
        await page.goto(viewer.url + "#episode=train-001000-0000")
        assert HOSTILE[0] in await page.evaluate("document.querySelector('.call pre').textContent")
        await page.goto(viewer.url + "#episode=train-001000-0003")
        assert "U+202E" in await page.evaluate("document.querySelector('.turns').textContent")
        assert not [url for url in page.asked if "evil" in url]


async def test_a_long_episode_scrolls_and_any_turn_can_be_gone_to(tmp_path, page):
    def change(journal: Journal) -> None:
        write_episode(journal, rollout("train-000400-0000", bash(*[("ls", "x")] * 999), "1", 1.0))

    drawn = "[...document.querySelectorAll('.turn[id]')].map((turn) => Number(turn.id.slice(5)))"
    async with Viewer([make_run(tmp_path / "run", change=change)]) as viewer:
        await page.goto(viewer.url + "#episode=train-000400-0000")
        assert await page.evaluate(drawn) == list(range(40))
        for _ in range(7):
            last = (await page.evaluate(drawn))[-1]
            await page.evaluate("window.scrollTo(0, document.body.scrollHeight)")
            await page.wait(f"{drawn}.at(-1) > {last}")
        turns = await page.evaluate(drawn)
        assert turns == list(range(turns[0], turns[-1] + 1))
        assert 0 < turns[0] < turns[0] + len(turns) <= turns[0] + 240
        await page.evaluate(
            "(() => { const j = document.querySelector('.jump'); j.value = 987;"
            " j.dispatchEvent(new Event('change')); })()"
        )
        await page.wait(f"{drawn}.at(-1) === 999")
        assert (await page.evaluate(drawn))[0] == 960
        top = "Math.abs(document.querySelector('#turn-986').getBoundingClientRect().top)"
        assert await page.evaluate(top) < 200
        await page.evaluate("[...document.querySelectorAll('.pages button')].at(-1).click()")
        await page.wait(f"{drawn}[0] === 920")
        assert page.errors == []


async def test_keys_lead_from_the_run_to_an_episode_and_back(tmp_path, page):
    async with Viewer([make_run(tmp_path / "run")]) as viewer:
        await page.goto(viewer.url)
        await page.press("e")
        await page.wait("document.querySelectorAll('tr.pick').length === 25")
        for key in "jjk":
            await page.press(key)
        assert (
            await page.evaluate(
                "[...document.querySelectorAll('tr.pick')].findIndex((r) => r.matches('.on'))"
            )
            == 0
        )
        await page.press("Enter")
        await page.wait("document.querySelector('.turns')")
        assert (await page.evaluate("document.querySelector('h1').textContent")).endswith("-0000")
        before = await page.evaluate("location.hash")
        await page.press("]")
        await page.wait(
            f"location.hash !== {before!r} && document.querySelector('h1').textContent.endsWith('-0001')"
        )
        await page.press("t")
        await page.wait("document.querySelectorAll('.token').length === 12")
        for until in ("tr.pick", ".verdict"):
            await page.press("Escape")
            await page.wait(f"document.querySelector('{until}')")
        await page.press("?")
        await page.wait("document.querySelector('dialog').open")
        assert page.errors == []


async def test_the_first_screen_follows_a_run(tmp_path, page):
    directory = make_run(tmp_path / "run", finished=False)
    async with Viewer([directory]) as viewer:
        await page.goto(viewer.url)
        await page.wait("document.querySelector('.now h2').textContent === 'Running'")
        with (directory / "metrics.jsonl").open("a") as file:
            file.write('{"step": 7, "loss": 1.0, "reward/mean": 1.0}\n')
        with (directory / "alarms.jsonl").open("a") as file:
            file.write('{"step": 7, "name": "no_update", "detail": "the weights stay"}\n')
        await page.wait("document.querySelector('.now').textContent.includes('7 of')")
        await page.wait(
            "document.querySelector('.verdict').textContent.includes('the weights stay')", seconds=5
        )


@pytest.mark.parametrize("kind", ["file", "directory"])
async def test_an_exported_page_needs_nobody(tmp_path, page, kind):
    runs = [make_run(tmp_path / "first", change=plant), make_run(tmp_path / "second", groups=8)]
    target = tmp_path / ("page.html" if kind == "file" else "page")
    await asyncio.to_thread(export_page, runs, target)
    url = (target if kind == "file" else target / "index.html").as_uri()
    hostile = {"hostile": "#episode=train-001000-0002", "bidi": "#episode=train-001000-0003"}
    await visit(page, url, SCREENS | hostile)
    assert await page.evaluate("window.pwned") is None
    assert [address for address in page.asked if not address.startswith(("file:", "about:", "data:"))] == []
    await page.goto(url + "#view=episodes&reward_min=1&text=train-000005")
    assert await page.evaluate("document.querySelectorAll('tr.pick').length") == GROUP
    with pytest.raises(ConfigError, match="exists already"):
        export_page(runs, target)


async def test_too_many_episodes_for_one_file_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("sandbox_rl.view.export.IN_ONE_FILE", 10)
    with pytest.raises(ConfigError, match="name a directory"):
        export_page([make_run(tmp_path / "run")], tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()
