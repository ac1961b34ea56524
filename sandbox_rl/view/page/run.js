import { chart } from "./charts.js";
import { ask } from "./data.js";
import { duration, fill, h, link, number, percent, table } from "./dom.js";

const CHARTS = [
  ["Reward", "mean of an update's episodes", /^reward\/(?!margins)/, {}],
  ["Held-out accuracy", "with its 95 % interval", null, {}],
  ["Solved", "episodes; groups with at least one", /^(solve_rate|pass_at_group)$/, { share: true }],
  ["Groups that teach nothing", "all their rewards are equal", /^zero_variance_groups$/, { share: true }],
  ["How episodes end", "share by stop reason", /^stop\//, { share: true }],
  ["Turns and calls", "per episode", /^(turns|calls\/.+)$/, {}],
  ["Tokens", "per episode", /^tokens\/(sampled|observed|prompt)$/, {}],
  ["Sampler against trainer", "divergence, nats per token", /^(mismatch\/(kl|mean)|mismatch_kl)$/, {}],
  ["Entropy", "of the policy, nats per token", /^entropy$/, {}],
  ["Gradient norm", "before clipping", /^grad_norm$/, {}],
  ["What updates change", "share of weights, and of tokens trained", /^(update\/(applied|changed)|samples\/trained)$/, { share: true }],
  ["Clipped", "share of tokens outside the trust region", /^clip_ratio\/(low|high|region)_mean$/, { share: true }],
  ["Staleness", "updates between sampling and training", /(^|\/)(stale|staleness|off_policy|weight_age)/, {}],
  ["Faults and failed calls", "of ours; of the policy per episode", /^(infra_fault_rate|masked_rate|failures\/.+)$/, {}],
  ["Time of an episode", "seconds, by what it was spent on", /^seconds\/(generation|execution|scoring|waiting)$/, {}],
  ["Time of a step", "seconds", /^(step_time|time\/.+|perf\/(engine_idle_s|wait_s|publish_s|publication_s))$/, {}],
];

// Of each chart the curve that comes first.
const LEADS = ["reward/mean", "solve_rate", "turns", "tokens/sampled", "mismatch/kl", "stop/submitted", "update/applied", "infra_fault_rate", "seconds/generation", "step_time"];
const moment = (time) => new Date(1000 * time).toLocaleString([], { month: "short", day: "numeric", hour: "2-digit", minute: "2-digit" });

export async function runScreen(state, main) {
  let known = await ask("overview", { run: state.run });
  const now = h("section.now.panel", { "aria-label": "Now" });
  const body = h("div");
  const draw = () => fill(body, ...curves(state, known));
  fill(main, h("div.first", {}, verdict(known), now), body);
  if (known.kind === "training" || known.curves.step.length) draw();
  else fill(body, results(known), episodesLink(state, known));
  nowBox(now, state, known);
  const update = async () => {
    const fresh = await ask("overview", { run: state.run, have: known.version });
    nowBox(now, state, fresh);
    if (fresh.curves) {
      known = fresh;
      main.querySelector(".verdict").replaceWith(verdict(known));
      draw();
    }
  };
  return { update, redraw: draw };
}

function verdict(run) {
  const levels = { good: "fine", note: "note", warn: "look at", bad: "wrong" };
  const line = (f) => h("li." + f.level, {}, h("span.mark", { "aria-label": levels[f.level] }), h("span", {}, f.text));
  const said = run.kind === "evaluation" ? evaluated(run) : run.headline;
  return h("section.verdict", { "aria-label": "Is it learning?" },
    h("h1." + said.level, {}, said.text),
    run.findings.length ? h("ul.findings", {}, run.findings.slice(0, 8).map(line)) : null,
    run.findings.some((f) => f.level !== "note") || (run.kind === "training" && !run.progress.done) ? null : h("p.soft", {}, run.kind === "evaluation" ? run.path : "Nothing stands in its way: no alarms, no faults, and groups whose rewards differ."),
    numbers(run));
}

function numbers(run) {
  const { curves: c, held_out: held } = run;
  const last = (name) => (c[name] || []).findLast((v) => v !== null);
  const first = (name) => (c[name] || []).find((v) => v !== null);
  const from = (name, show) => (last(name) === undefined ? null : [show(last(name)), h("small", {}, ` from ${show(first(name))}`)]);
  const at = (held.step || []).length - 1;
  const facts = [
    ["Held out", at >= 0 && [percent(held["eval/accuracy"][at]), h("small", {}, ` ${percent(held["eval/low"]?.[at])} to ${percent(held["eval/high"]?.[at])}`)]],
    ["Reward", from("reward/mean", (v) => number(v))], ["Solved", from("solve_rate", percent)], ["Turns", from("turns", (v) => number(v))], ["Tokens per episode", from("tokens/sampled", (v) => number(v))],
  ].filter(([, value]) => value);
  return facts.length ? h("dl.numbers", {}, facts.map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value)))) : null;
}

function evaluated(run) {
  const all = Object.values(run.results).flatMap((modes) => Object.entries(modes));
  const text = all.map(([mode, r]) => `${mode} ${r.accuracy ? `${percent(r.accuracy.value)} [${percent(r.accuracy.low)}, ${percent(r.accuracy.high)}]` : "not measured"}`).join("; ");
  return { level: "note", text: text ? `Accuracy: ${text}.` : "Not measured yet." };
}

const DOING = { episodes: "Sampling episodes", measuring: "Measuring on held-out tasks", update: "Updating the weights", between: "Between two updates" };

function nowBox(box, state, run) {
  const silent = run.clock - run.last_sign, doing = run.now.status, live = run.state === "running";
  const measures = doing.doing === "episodes" && run.now.live.length && run.now.live.every((e) => e.phase === "eval");
  const words = { running: DOING[measures ? "measuring" : doing.doing] || "Running", finished: "Finished", stopped: "Stopped, as it was asked to", ended: `Ended without saying so at ${moment(run.last_sign)}`, silent: `No sign of life for ${duration(silent)}, and no end` };
  const { done, total, seconds_left: left, seconds_per_step: pace } = run.progress;
  const { alive = 0, sampling = 0, waiting = 0 } = doing.episodes || {};
  const save = doing.next_checkpoint;
  const facts = [
    total && ["Updates", `${number(done)} of ${number(total)}`],
    left !== null && live && ["Done in about", duration(left)],
    pace !== null && ["An update takes", duration(pace)],
    live && save && save > done && ["Next checkpoint", `update ${number(save)}${pace === null ? "" : ", in " + duration(pace * (save - done))}`],
    ["Episodes", number(run.now.episodes)],
    live && ["In flight", `${number(run.now.in_flight)}${alive ? `, ${number(sampling)} at a turn` : ""}`],
    live && waiting > 0 && ["Waiting, or being scored", number(waiting)],
    ...(live ? (doing.servers || []).map((s, i, all) => [all.length > 1 ? `Server ${i + 1}` : "Server", s.away ? h("span.warn", {}, "does not answer") : `${number(s.episodes)} episodes, weights ${doing.weights}`]) : []),
    live && doing.card && ["GPU", [doing.card.busy === null ? null : `${doing.card.busy} % busy`, `${Math.round(100 * doing.card.memory)} % of its memory`].filter(Boolean).join(", ")],
    run.behind > 0 && ["Still to be read", `${number(run.behind / 1e6, 3)} MB`],
    [live ? "Last sign" : "Until", live ? `${duration(Math.max(0, silent))} ago` : moment(run.last_sign)],
  ].filter(Boolean);
  const bar = total ? h("progress", { max: total, value: done, "aria-label": "updates done" }) : null;
  fill(box, h("h2." + run.state, {}, words[run.state]), bar,
    h("dl", {}, facts.map(([name, value]) => [h("dt", {}, name), h("dd", {}, value)])),
    run.now.live.length ? h("ol.live", {}, run.now.live.slice(0, 6).map((e) => h("li", {}, link({ run: state.run, view: "episode", episode: e.id }, e.id), h("span.soft", {}, ` turn ${e.turns + 1}, ${duration(run.clock - e.started)}`)))) : null,
    run.now.golds ? h("p.soft.note", {}, "Gold answers are not shown. " + run.now.golds) : null);
}

function curves(state, run) {
  const { curves: c, held_out: held } = run;
  const made = CHARTS.map(([title, hint, pattern, options]) => {
    if (pattern === null) return held.step?.length ? heldOut(run) : null;
    let names = Object.keys(c).filter((name) => pattern.test(name) && c[name].some((v) => v));
    if (title === "Reward" && names.filter((n) => n !== "reward/mean").length === 1) names = ["reward/mean"];
    names.sort((a, b) => LEADS.includes(b) - LEADS.includes(a) || (a < b ? -1 : 1));
    if (!names.length) return null;
    const series = names.slice(0, 6).map((name) => ({ label: name.split("/").at(-1).replaceAll("_", " "), values: c[name] }));
    return chart({ title, hint, x: c.step, series, events: run.events, ...options });
  });
  const step = run.progress.done;
  return [
    h("div.charts", {}, made),
    h("div.pair", {}, results(run), events(run)),
    h("div.pair", {}, run.curves.step.length ? anyMetric(run) : null, h("section.panel", {}, h("h2", {}, "Go on"), h("p", {}, episodesLink(state, run)),
      step ? h("p", {}, link({ run: state.run, view: "timeline", step: step - 1 }, "Timeline of the last step")) : null,
      h("p", {}, link({ run: state.run, view: "suspicions" }, "What looks suspicious")), h("p", {}, link({ run: state.run, view: "recipe" }, "The recipe")))),
  ];
}

const episodesLink = (state, run) => link({ run: state.run, view: "episodes", sort: "started", desc: 1 }, `All ${number(run.now.episodes)} episodes`);

function heldOut(run) {
  const held = run.held_out;
  const parts = Object.keys(held).filter((name) => name.startsWith("eval/accuracy/"));
  const series = [{ label: "all", values: held["eval/accuracy"], band: held["eval/low"] && [held["eval/low"], held["eval/high"]] }];
  if (parts.length > 1) parts.forEach((name) => series.push({ label: name.split("/").at(-1), values: held[name] }));
  return chart({ title: "Held-out accuracy", hint: "with its 95 % interval", x: held.step, series, events: run.events, share: true });
}

function results(run) {
  const rows = [];
  for (const [when, modes] of Object.entries(run.results)) {
    for (const [mode, found] of Object.entries(modes)) {
      const name = [when, Object.keys(modes).length > 1 ? mode : ""].filter(Boolean).join(", ") || mode;
      const cell = (m) => (m ? [h("td.right", {}, percent(m.value)), h("td.right.soft", {}, `${percent(m.low)} to ${percent(m.high)}`), h("td.right", {}, number(m.tasks))] : [h("td.right", {}, "not measured"), h("td"), h("td")]);
      rows.push(h("tr", {}, h("th", { scope: "row" }, name), ...cell(found.accuracy)));
      const parts = Object.entries(found.parts);
      if (parts.length > 1) parts.forEach(([part, m]) => rows.push(h("tr.soft", {}, h("th", { scope: "row" }, " · " + part), ...cell(m))));
    }
  }
  const columns = [{ title: "Held-out tasks" }, { title: "accuracy", right: true }, { title: "95 % interval", right: true }, { title: "tasks", right: true }];
  return h("section.panel", {}, h("h2", {}, "Results"), rows.length ? table("Results", columns, rows) : h("p.soft", {}, "Nothing was measured yet."));
}

function events(run) {
  const said = [...run.events, ...run.alarms.slice(-30).map((a) => ({ step: a.step, time: a.time, what: "alarm " + a.name, detail: a.detail, full: true }))]
    .filter((e) => e.full || !e.what.startsWith("alarm")).sort((a, b) => b.step - a.step);
  const rows = said.slice(0, 40).map((e) => h("tr", {}, h("td.right", {}, number(e.step)), h("td" + (e.full ? ".bad" : ""), {}, e.what), h("td.soft", {}, e.detail || (e.time ? moment(e.time) : ""))));
  return h("section.panel", {}, h("h2", {}, "Events"), table("Events", [{ title: "step", right: true }, { title: "what" }, { title: "when, or why" }], rows));
}

function anyMetric(run) {
  const names = Object.keys(run.curves).filter((name) => name !== "step");
  const place = h("div");
  const choice = h("select", { id: "metric", onchange: () => show(choice.value) }, names.map((name) => h("option", { value: name }, name)));
  const show = (name) => fill(place, chart({ title: name, x: run.curves.step, series: [{ label: name, values: run.curves[name] }], events: run.events }));
  if (names.includes("loss")) choice.value = "loss";
  setTimeout(() => names.length && show(choice.value));
  return h("section.panel", {}, h("h2", {}, h("label", { for: "metric" }, "Any metric "), choice), place);
}
