import { chart } from "./charts.js";
import { ask } from "./data.js";
import { address, duration, fill, h, link, number, percent, picked, rewardBadge, table } from "./dom.js";
import { addCommand, addDiff, addText, oneLine } from "./text.js";

export async function groupScreen(state, main) {
  const g = await ask("group", { run: state.run, id: state.episode });
  const column = (m) => h("section.member", { "aria-label": m.episode.id },
    h("h2.mono", {}, link({ run: state.run, view: "episode", episode: m.episode.id }, m.episode.id)),
    h("p", {}, rewardBadge(m.episode.reward, m.episode.state), m.why.advantage === null ? null : h("span.soft", {}, ` advantage ${number(m.why.advantage)}`)),
    h("p.answer.mono", {}, oneLine(m.answer.text || "no answer", 60)),
    m.turns.map((turn, i) => h("div.step" + (i < m.differs_at ? ".same" : i === m.differs_at && m !== g.members[0] ? ".differs" : ""), {},
      h("div.label", {}, `turn ${i + 1}`, i === m.differs_at && m !== g.members[0] ? h("b", {}, " first difference") : null),
      turn.thought.text ? addText(h("p.thought"), turn.thought.text.slice(0, 400)) : null,
      turn.calls.map((c) => { const pre = h("pre." + c.kind); return c.kind === "bash" ? addCommand(pre, c.text.slice(0, 800)) : c.kind === "edit" ? addDiff(pre, c.text.slice(0, 800)) : addText(pre, c.text.slice(0, 800)); }),
      turn.observations.map((o) => addText(h("pre.seen"), oneLine(o.text, 160))))));
  fill(main, h("h1", {}, "Group ", h("span.mono", {}, g.siblings)), h("p", {}, "Task ", link({ run: state.run, view: "task", task: g.task_id }, g.task_id), g.all > g.members.length ? `; the first ${g.members.length} of ${g.all}` : ""), h("div.group", { tabindex: "0", role: "region", "aria-label": "Members of the group" }, g.members.map(column)));
  return {};
}

export async function taskScreen(state, main) {
  const t = await ask("task", { run: state.run, task_id: state.task });
  const by = new Map();
  t.attempts.forEach((a) => a.reward !== null && a.step !== null && by.set(a.step, [...(by.get(a.step) || []), a.reward]));
  const steps = [...by.keys()].sort((a, b) => a - b);
  const means = steps.map((s) => by.get(s).reduce((x, y) => x + y, 0) / by.get(s).length);
  const rows = t.attempts.map((a) => picked(h("tr" + (a.replaced ? ".replaced" : ""), {}, h("td.right", {}, number(a.step)), h("td", {}, a.phase), h("td.mono", {}, link({ run: state.run, view: "episode", episode: a.id }, a.id)), h("td.right", {}, rewardBadge(a.reward, a.state)), h("td.right", {}, a.advantage === null ? "" : number(a.advantage)), h("td.right", {}, number(a.turns)), h("td.right", {}, number(a.sampled)), h("td.answer.mono", {}, oneLine(a.answer || "", 60))), { run: state.run, view: "episode", episode: a.id }));
  fill(main, h("h1", {}, "Task ", h("span.mono", {}, t.task_id)), h("p.soft", {}, `${number(t.attempts.length)} attempts`),
    steps.length > 1 ? h("div.charts", {}, chart({ title: "Reward of this task", hint: "mean of the attempts of a step", x: steps, series: [{ label: "reward", values: means }] })) : null,
    table("Attempts", [{ title: "step", right: true }, { title: "phase" }, { title: "episode" }, { title: "reward", right: true }, { title: "advantage", right: true }, { title: "turns", right: true }, { title: "tokens", right: true }, { title: "answer" }], rows));
  return {};
}

export async function compareScreen(state, main, runs) {
  const run = Number(state.run || 0), other = Number(state.other ?? (run === 0 ? 1 : 0));
  const c = await ask("compare", { run, other });
  const mean = (m) => (m ? `${percent(m.value)} [${percent(m.low)}, ${percent(m.high)}]` : "–");
  const points = (v) => `${v >= 0 ? "+" : ""}${(100 * v).toFixed(1)}`;
  const choose = (name, value) => { const s = h("select", { "aria-label": name, onchange: () => (location.hash = address({ ...state, run, other, [name]: s.value })) }, runs.map((r) => h("option", { value: r.run }, r.name))); s.value = value; return s; };
  const d = c.difference;
  const tell = !d ? "They have no task in common." : d.low > 0 ? "The second is better." : d.high < 0 ? "The first is better." : "No difference that these tasks can show.";
  fill(main, h("h1", {}, tell), h("p", {}, choose("run", run), " against ", choose("other", other), h("span.soft", {}, ` over ${number(c.shared)} tasks that both have, ${c.phase === "eval" ? "as last measured" : "all of training"}`)),
    d ? h("p.big", {}, `${points(d.value)} points [${points(d.low)}, ${points(d.high)}]`, h("span.soft", {}, `  ${c.names[0]} ${mean(c.means[0])}, ${c.names[1]} ${mean(c.means[1])}`)) : null,
    table("Tasks, most changed first", [{ title: "task" }, { title: c.names[0], right: true }, { title: c.names[1], right: true }, { title: "change", right: true }],
      c.tasks.map((t) => picked(h("tr", {}, h("td.mono", {}, link({ run, view: "task", task: t.task_id }, t.task_id)), h("td.right", {}, number(t.first)), h("td.right", {}, number(t.second)), h("td.right", {}, t.second === t.first ? "" : points(t.second - t.first))), { run, view: "task", task: t.task_id }))));
  return {};
}

const ROW = 12;

export async function timelineScreen(state, main) {
  const step = Number(state.step || 0);
  const t = await ask("timeline", { run: state.run, step, phase: state.phase || "train" });
  const wide = 1000, scale = wide / (t.seconds || 1);
  const svg = (name, attributes, ...children) => { const e = document.createElementNS("http://www.w3.org/2000/svg", name); for (const [k, v] of Object.entries(attributes)) e.setAttribute(k, v); e.append(...children); return e; };
  const bars = t.episodes.map((e, row) => {
    const line = svg("a", { href: address({ run: state.run, view: "episode", episode: e.id }), "aria-label": e.id });
    const title = svg("title", {});
    title.textContent = `${e.id}, reward ${number(e.reward)}: ${e.bars.map(([what, a, b]) => `${what} ${duration(b - a)}`).join(", ")}`;
    line.append(title, ...e.bars.map(([what, a, b]) => svg("rect", { class: "bar-" + what, x: a * scale, y: row * ROW, width: Math.max(0.5, (b - a) * scale), height: ROW - 2 })));
    return line;
  });
  const idle = Object.entries(t.idle).map(([cause, s]) => `${duration(s)} waiting for ${cause}`).join(", ");
  const height = Math.max(ROW, t.episodes.length * ROW);
  const go = (to) => (location.hash = address({ ...state, step: to }));
  fill(main, h("h1", {}, `Step ${step} `, h("span.soft", {}, `${duration(t.seconds)}, ${number(t.episodes.length)} episodes`)),
    h("p", {}, idle ? `Nobody generated for ${duration(Object.values(t.idle).reduce((a, b) => a + b, 0))}: ${idle}.` : "Somebody generated all the time."),
    h("p.legend", {}, ["generate", "tool", "score", "wait"].map((k) => h("span.entry", {}, h("span.dot.bar-" + k), { generate: "generating", tool: "in tools", score: "scoring", wait: "waiting: sandbox, queue" }[k])),
      h("button.quiet", { onclick: () => go(Math.max(0, step - 1)) }, "← step"), h("button.quiet", { onclick: () => go(step + 1) }, "step →")),
    h("div.timeline", { tabindex: "0", role: "region", "aria-label": "Episodes over time" }, svg("svg", { viewBox: `0 0 ${wide} ${height}`, preserveAspectRatio: "none", height: Math.min(height, 1600), role: "group", "aria-label": "Episodes over time" }, ...bars)),
    h("div", {}, chart({ title: "At once", hint: "episodes, over the seconds of the step", x: t.load.at, along: "second", series: [{ label: "generating", values: t.load.generate }, { label: "in tools", values: t.load.tool }] })),
    h("details", {}, h("summary", {}, "What the step logged"), h("dl.row", {}, Object.entries(t.metrics).map(([k, v]) => h("div", {}, h("dt", {}, k), h("dd", {}, number(v)))))));
  return { keys: { "[": () => go(Math.max(0, step - 1)), "]": () => go(step + 1) } };
}

export async function suspicionsScreen(state, main) {
  const s = await ask("suspicions", { run: state.run, rule: state.rule });
  const rules = s.rules.map((r) => h("a.rule" + (r.count ? "" : ".none"), { href: address({ run: state.run, view: "suspicions", rule: state.rule === r.name ? "" : r.name }), "aria-current": state.rule === r.name ? "true" : null }, h("b", {}, number(r.count)), h("span", {}, h("strong", {}, r.name.replaceAll("_", " ")), h("span.soft", {}, r.means))));
  const rows = s.rows.map((r) => picked(h("tr", {}, h("td", {}, r.name.replaceAll("_", " ")), h("td.mono", {}, link({ run: state.run, view: "episode", episode: r.id }, r.id)), h("td.right", {}, number(r.step)), h("td", {}, r.domain), h("td.right", {}, rewardBadge(r.reward)), h("td.mono", {}, oneLine(r.detail || "", 110))), { run: state.run, view: "episode", episode: r.id }));
  fill(main, h("h1", {}, "Suspicions"), h("p.soft", {}, `What pays without being work, by rules; a flag is no verdict and changes no reward. ${number(s.looked)} of ${number(s.ended)} episodes looked at.`),
    s.trend ? h("ul.findings", {}, h("li.warn", {}, h("span.mark"), h("span", {}, s.trend.text))) : null, h("div.rules", {}, rules),
    rows.length ? table("Flagged episodes", [{ title: "rule" }, { title: "episode" }, { title: "step", right: true }, { title: "domain" }, { title: "reward", right: true }, { title: "what was seen" }], rows) : h("p", {}, s.looked < s.ended ? "Still looking." : "Nothing looks suspicious."));
  return {};
}

export async function recipeScreen(state, main) {
  const { text } = await ask("recipe", { run: state.run });
  fill(main, h("h1", {}, "Recipe"), addText(h("pre.recipe"), text || "There is none in this directory."));
  return {};
}
