import { ask, exported } from "./data.js";
import { address, fill, h, link } from "./dom.js";
import { episodeScreen } from "./episode.js";
import { episodesScreen } from "./episodes.js";
import { compareScreen, groupScreen, recipeScreen, suspicionsScreen, taskScreen, timelineScreen } from "./others.js";
import { runScreen } from "./run.js";

const POLL_MS = 1000;
const SCREENS = { run: runScreen, episodes: episodesScreen, episode: episodeScreen, group: groupScreen, task: taskScreen, compare: compareScreen, timeline: timelineScreen, suspicions: suspicionsScreen, recipe: recipeScreen };
const UP = { episode: "episodes", group: "episode", task: "episodes", timeline: "run", recipe: "run", episodes: "run", suspicions: "run", compare: "run" };
const KEYS = [["j, k", "next, previous row or turn"], ["Enter", "open it"], ["Esc", "back up"], ["[ ]", "previous, next sibling or step"], ["t", "turns or tokens"], ["r, e, s, c", "run, episodes, suspicions, comparison"], ["/", "search"], ["d", "light or dark"], ["?", "this list"]];
const main = document.getElementById("main"), top_ = document.getElementById("top"), help = document.getElementById("help");
let runs = [], state = {}, screen = {}, drawn = 0;

function read() {
  const found = Object.fromEntries(new URLSearchParams(location.hash.slice(1)));
  const view = found.view in SCREENS ? found.view : found.episode ? "episode" : found.task ? "task" : found.step ? "timeline" : "run";
  return { ...found, run: found.run || "0", view };
}

async function show() {
  const mine = ++drawn;
  state = read();
  header();
  document.title = [state.episode || state.task || (state.view === "run" ? "" : state.view), runs[state.run]?.name, "sandbox_rl"].filter(Boolean).join(" · ");
  const place = h("div.screen");
  screen = {};
  try {
    const made = await SCREENS[state.view](state, place, runs);
    if (mine !== drawn) return;
    screen = made;
  } catch (error) {
    fill(place, h("h1", {}, "This cannot be shown"), h("p", {}, error.message));
  }
  if (mine !== drawn) return;
  main.replaceChildren(place);
  screen.redraw?.();
  scrollTo(0, 0);
}

function header() {
  const tab = (view, title, more = {}) => h("a", { href: address({ run: state.run, view, ...more }), "aria-current": state.view === view ? "page" : null }, title);
  const menu = h("select", { "aria-label": "Run", onchange: () => (location.hash = address({ run: menu.value, view: state.view in UP && state.view !== "episodes" && state.view !== "suspicions" ? "run" : state.view })) }, runs.map((r) => h("option", { value: r.run }, r.name)));
  menu.value = state.run;
  fill(top_, h("div.bar", {}, runs.length > 1 ? menu : h("span.name", {}, link({ run: 0, view: "run" }, runs[0]?.name || "")),
    h("nav", { "aria-label": "Screens" }, tab("run", "Run"), tab("episodes", "Episodes", { sort: "started", desc: 1 }), tab("suspicions", "Suspicions"), runs.length > 1 ? tab("compare", "Compare") : null),
    h("span.grow"), exported ? h("span.soft", {}, "exported") : null,
    h("button.quiet", { onclick: theme, title: "light or dark (d)", "aria-label": "light or dark" }, "◐"), h("button.quiet", { onclick: () => help.showModal(), title: "keyboard (?)", "aria-label": "keyboard" }, "?")));
}

function theme() {
  const root = document.documentElement;
  const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
  try { localStorage.setItem("theme", root.dataset.theme); } catch { /* a file may have no storage */ }
  show();
}

function move(step) {
  const rows = [...document.querySelectorAll(".pick")];
  const at = rows.findIndex((row) => row.classList.contains("on"));
  const next = rows[Math.max(0, Math.min(rows.length - 1, at + step))];
  if (!next) return;
  rows[at]?.classList.remove("on");
  next.classList.add("on");
  next.scrollIntoView({ block: "nearest" });
}

const ACTIONS = {
  j: () => move(1), k: () => move(-1), d: theme, "?": () => (help.open ? help.close() : help.showModal()),
  Enter: () => { const row = document.querySelector(".pick.on"); if (row && row.dataset.open.length > 1) location.hash = row.dataset.open; },
  Escape: () => { const up = UP[state.view]; if (up) location.hash = address(up === "episode" ? { run: state.run, view: up, episode: state.episode } : { run: state.run, view: up }); },
  "/": () => { if (state.view !== "episodes") location.hash = address({ run: state.run, view: "episodes" }); setTimeout(() => document.getElementById("search")?.focus(), 300); },
  r: () => (location.hash = address({ run: state.run, view: "run" })), e: () => (location.hash = address({ run: state.run, view: "episodes" })),
  s: () => (location.hash = address({ run: state.run, view: "suspicions" })), c: () => runs.length > 1 && (location.hash = address({ run: state.run, view: "compare" })),
};

addEventListener("keydown", (event) => {
  if (event.target.closest?.("input, select, textarea")) {
    if (event.key === "Escape") event.target.blur();
    return;
  }
  if (event.ctrlKey || event.metaKey || event.altKey || help.open || (event.key === "Enter" && event.target.closest?.("a, button"))) return;
  const action = screen.keys?.[event.key] || ACTIONS[event.key];
  if (action) {
    event.preventDefault();
    action();
  }
});

async function poll() {
  try {
    if (!document.hidden) await screen.update?.();
    main.classList.remove("lost");
  } catch {
    main.classList.add("lost");
  }
  setTimeout(poll, POLL_MS);
}

async function start() {
  try {
    const chosen = localStorage.getItem("theme");
    if (chosen) document.documentElement.dataset.theme = chosen;
  } catch { /* a file may have no storage */ }
  fill(help, h("h2", {}, "Keyboard"), h("dl", {}, KEYS.map(([key, does]) => [h("dt", {}, key), h("dd", {}, does)])), h("form", { method: "dialog" }, h("button", {}, "Close")));
  runs = await ask("runs");
  addEventListener("hashchange", show);
  await show();
  if (!exported) poll();
}

start();
