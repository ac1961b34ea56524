import { ask } from "./data.js";
import { address, duration, fill, h, link, number, picked, rewardBadge } from "./dom.js";
import { addCommand, addDiff, addText, pieces, shortLines } from "./text.js";

const LINES = 16; // of an observation before it is folded
const PAGE = 40, KEPT = 240; // turns that are asked for at once, and that are drawn at once
const CHUNK = 1500; // tokens that are drawn at once

export async function episodeScreen(state, main) {
  const id = state.episode, query = { run: state.run, id };
  const e = await ask("episode", query);
  const tab = state.tab || "turns";
  const facts = e.episode;
  const to = (tab) => ({ run: state.run, view: "episode", episode: id, tab: tab === "turns" ? "" : tab });
  const at = e.siblings.findIndex((s) => s.id === id);
  const strip = h("nav.siblings", { "aria-label": "Siblings" }, e.siblings.length > 1 ? e.siblings.map((s) => {
    const box = h("a." + (s.reward === null ? "none" : s.reward >= 1 ? "full" : s.reward > 0 ? "part" : "zero"), { href: address({ ...to(tab), episode: s.id }), title: `${s.id}: reward ${number(s.reward)}`, "aria-label": `sibling ${s.id}, reward ${number(s.reward)}`, "aria-current": s.id === id ? "page" : null });
    return box;
  }) : null, e.siblings.length > 1 ? link({ run: state.run, view: "group", episode: e.siblings[0].id }, "side by side") : null);
  const head = h("section.facts", {},
    h("h1.mono", {}, id),
    strip,
    h("p.why", {}, rewardBadge(facts.reward, facts.state), " ", h("span", {}, e.why.sentence), e.why.advantage === null ? null : h("b", {}, ` Advantage ${number(e.why.advantage)}.`)),
    h("dl.row", {}, pairs([
      ["Task", link({ run: state.run, view: "task", task: facts.task_id }, facts.task_id || "–")], ["Domain", facts.domain], ["Phase", facts.phase],
      ["Step", facts.step === null ? "–" : link({ run: state.run, view: "timeline", step: facts.step, phase: facts.phase }, facts.step)], ["Ended by", (facts.stop || facts.state).replaceAll("_", " ")],
      ["Turns", number(e.turns_total)], ["Tokens", `${number(e.prompt_tokens)} prompt, ${number(facts.sampled)} sampled, ${number(facts.observed)} observed`],
      ["Time", `${duration(facts.seconds)}: ${duration(facts.generation_seconds)} generating, ${duration(facts.execution_seconds)} in tools`],
    ])),
    e.flags.length ? h("ul.findings", {}, e.flags.map((f) => h("li.warn", {}, h("span.mark"), h("span", {}, f.name.replaceAll("_", " "), ": ", f.detail)))) : null);
  const tabs = h("nav.tabs", { "aria-label": "Views of the episode" }, ["turns", "tokens"].map((name) => h("a", { href: address(to(name)), "aria-current": tab === name ? "page" : null }, name === "turns" ? "Turns" : "Tokens")));
  const body = h("div");
  fill(main, head, tabs, body);
  if (tab === "tokens") await tokensTab(state, query, body);
  else turnsTab(query, e, body);
  const neighbour = (step) => {
    const next = e.siblings[at + step];
    if (next) location.hash = address({ ...to(tab), episode: next.id });
  };
  return { keys: { "[": () => neighbour(-1), "]": () => neighbour(1), t: () => (location.hash = address(to(tab === "tokens" ? "turns" : "tokens"))) } };
}

const pairs = (facts) => facts.map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value)));

function turnsTab(query, e, body) {
  const list = h("div.turns");
  const outcome = h("section.turn.outcome", {}, h("h2", {}, "Outcome"), h("div.columns", {},
    part("Answer", block(query, e.answer, { what: "answer" }), e.answer_status && e.answer_status !== "ok" ? e.answer_status : ""),
    e.gold ? part("Gold answer", block(query, e.gold, {})) : e.gold_failure ? part("Gold answer", h("p.soft", {}, "Not known. " + e.gold_failure)) : null,
    part("Score", h("div", {}, rewardBadge(e.episode.reward, e.episode.state), Object.entries(e.reward_parts).map(([name, value]) => h("span.partial", {}, `${name} ${number(value)}`)), e.reward_detail.text ? block(query, e.reward_detail, { what: "detail" }) : null, e.episode.fault ? h("p.bad", {}, e.episode.fault) : null))));
  const prompt = h("section.turn.prompt", {}, h("h2", {}, "Prompt ", h("span.soft", {}, `${number(e.prompt_tokens)} tokens`)),
    e.decoded ? block(query, e.prompt, { what: "prompt" }) : h("p.soft", {}, "The ids cannot be shown as text: no tokenizer is in the run or in the model's cache."));
  const long = e.turns_total > PAGE, shown = turnWindow(query, e, list);
  const jump = h("input.jump", { type: "number", min: 1, max: e.turns_total, "aria-label": "go to turn", placeholder: "turn", onchange: () => shown.go(Number(jump.value)) });
  const bar = long ? h("p.pages", {}, h("span", {}, `${number(e.turns_total)} turns`), h("label", {}, "go to ", jump), shown.before) : null;
  const files = e.turns.some((turn) => turn.files) ? null : h("p.soft", {}, "What each turn changed in its sandbox is seen by playing the episode again: ", h("code", {}, `sandbox-rl replay RUN ${e.episode.id} --files`));
  fill(body, prompt, long ? outcome : null, bar, list, shown.more, long ? null : outcome, e.episode.state === "ended" && e.turns.length ? files : null);
  shown.start();
}

// The turns that are drawn: more come while one scrolls down, and those far above go.
function turnWindow(query, e, list) {
  let first = 0, end = 0, last = Promise.resolve();
  const total = e.turns_total;
  const more = h("button.more", { onclick: () => down() }), before = h("button.more", { onclick: () => up() });
  const say = () => {
    more.hidden = end >= total;
    more.textContent = `Show turns ${end + 1} to ${Math.min(end + PAGE, total)} of ${number(total)}`;
    before.hidden = first === 0;
    before.textContent = `show turns ${first - PAGE + 1} to ${first}`;
  };
  const turnsFrom = async (at) => (await ask("episode", { ...query, offset: at || "" })).turns.map((turn) => turnCard(query, turn));
  const alone = (work) => (last = last.catch(() => {}).then(work).then(say)); // one after the other
  const down = () => alone(async () => {
    if (end >= total) return;
    const cards = await turnsFrom(end);
    list.append(...cards);
    end += cards.length;
    while (end - first > KEPT) {
      for (let i = 0; i < PAGE; i++) list.firstChild.remove();
      first += PAGE;
    }
  });
  const up = () => alone(async () => {
    if (!first) return;
    const cards = await turnsFrom(first - PAGE);
    list.prepend(...cards);
    first -= PAGE;
    for (; end - first > KEPT; end--) list.lastChild.remove();
  });
  const go = (turn) => alone(async () => {
    const at = Math.max(0, Math.min(total, turn || 1) - 1);
    const cards = await turnsFrom(at - (at % PAGE));
    list.replaceChildren(...cards);
    first = at - (at % PAGE);
    end = first + cards.length;
    list.children[at - first]?.scrollIntoView({ block: "start" });
  });
  const start = () => {
    list.append(...e.turns.map((turn) => turnCard(query, turn)));
    end = e.turns.length;
    say();
    const watch = new IntersectionObserver(async (seen) => {
      if (!seen.some((s) => s.isIntersecting) || end >= total) return;
      await down();
      watch.unobserve(more); // to be told again where it is still in sight
      watch.observe(more);
    });
    if (total > PAGE) watch.observe(more);
  };
  return { more, before, go, start };
}

function turnCard(query, turn) {
  const about = [`${number(turn.sampled)} tokens`, duration(turn.generation), turn.logprob === null ? "" : `mean log-prob ${number(turn.logprob)}`, `weights ${[turn.version, ...turn.switches.map((s) => s[1])].join(" → ")}`, turn.finish === "length" ? "cut off" : ""].filter(Boolean).join(" · ");
  const calls = turn.calls.map((call, number_) => h("div.call." + call.kind, {}, h("div.label", {}, call.kind === "malformed" ? "a call that cannot be read" : call.name || "call"), call.text && block(query, call, { what: "call", turn: turn.index, number: number_ }, call.kind)));
  const seen = turn.observations.map((o, number_) => {
    const about = [o.failure ? o.failure.replaceAll("_", " ") : "", o.exit_code ? `exit code ${o.exit_code}` : "", o.submitted ? "submitted" : "", duration(o.seconds)].filter(Boolean).join(" · ");
    return h("div.observation" + (o.failure ? ".failed" : ""), {}, h("div.label", {}, "observation ", h("span.soft", {}, about)), o.text ? block(query, o, { what: "observation", turn: turn.index, number: number_ }) : null);
  });
  const files = (turn.files || []).map((file) => {
    const title = h("summary", {}, h("span.mono", {}, file.path), ` ${file.what}, ${number(file.bytes)} bytes`);
    return file.diff ? h("details.file", { open: file.diff.length < 600 }, title, addDiff(h("pre"), file.diff)) : h("p.soft.file", {}, h("span.mono", {}, file.path), ` ${file.what}, ${number(file.bytes)} bytes, no text`);
  });
  const changed = files.length ? h("div.files", {}, h("div.label", {}, "changed in the sandbox"), files) : null;
  const raw = h("details", {}, h("summary", {}, "as sampled"));
  raw.addEventListener("toggle", async () => raw.childElementCount === 1 && raw.append(addText(h("pre.raw"), (await ask("text", { ...query, what: "raw", turn: turn.index })).text)));
  return picked(h("section.turn", { id: "turn-" + turn.index }, h("h2", {}, `Turn ${turn.index + 1} `, h("span.soft", {}, about)), turn.thought.text ? h("div.thought", {}, block(query, turn.thought, { what: "thought", turn: turn.index }, "thought")) : null, calls, seen, changed, turn.sampled ? raw : null), {});
}

const part = (title, content, note = "") => h("div", {}, h("h3", {}, title, note ? h("span.soft", {}, " " + note) : ""), content);

// A text, folded beyond some lines; the whole of it is asked for when somebody wants it.
function block(query, given, where, kind = "") {
  const { text, cut } = shortLines(given.text);
  const lines = text.split("\n");
  const folded = lines.length > LINES || given.chars > given.text.length || cut;
  const pre = h("pre" + (kind ? "." + kind : ""));
  const put = (text) => (kind === "bash" ? addCommand(pre, text) : kind === "edit" ? addDiff(pre, text) : addText(pre, text));
  put(folded && kind !== "thought" ? lines.slice(0, LINES).join("\n") : text);
  if (!folded || (kind === "thought" && given.chars <= given.text.length && !cut)) return text ? pre : h("p.soft", {}, "empty");
  const button = h("button.more", {}, `Show all: ${number(given.chars)} characters`);
  button.onclick = async () => {
    const whole = given.chars > given.text.length ? (await ask("text", { ...query, ...where })).text : given.text;
    pre.replaceChildren();
    const parts = pieces(whole);
    put(parts.shift());
    button.hidden = !parts.length;
    button.textContent = "Show more";
    button.onclick = () => { addText(pre, parts.shift()); button.hidden = !parts.length; };
  };
  return h("div", {}, pre, button);
}

const HEATS = {
  "log-prob, sampler": (t, i) => (t.logprob[i] === null ? null : Math.min(1, -t.logprob[i] / 4)),
  "log-prob, trainer": (t, i) => (t.trainer[i] === null ? null : Math.min(1, -t.trainer[i] / 4)),
  difference: (t, i, most) => (apart(t, i) === null ? null : Math.abs(apart(t, i)) / most.difference),
  "share of the gradient": (t, i, most) => (t.share[i] === null ? null : t.share[i] / most.share),
  advantage: (t, i) => (t.origin[i] === 1 && t.advantage !== null ? Math.min(1, Math.abs(t.advantage) / 2) : null),
  "weight version": (t, i, most) => (t.version[i] === null || most.oldest === most.newest ? null : (t.version[i] - most.oldest) / (most.newest - most.oldest)),
  origin: () => null,
};
const HINTS = {
  "log-prob, sampler": "stronger is less likely", "log-prob, trainer": "stronger is less likely", difference: "stronger is further from the sampler", "share of the gradient": "stronger moves the weights more",
  advantage: "stronger counts more, either way", "weight version": "stronger is newer", origin: "grey was not sampled",
};
const OF_TRAINER = ["log-prob, trainer", "difference", "share of the gradient"];
const apart = (t, i) => (t.trainer[i] === null || t.logprob[i] === null ? null : t.trainer[i] - t.logprob[i]);
// Of a long column: Math.max(...column) would have too many arguments.
const most = (column, least) => column.reduce((a, b) => (b === null || b <= a ? a : b), least);
const share = (w) => (w === 0 ? "0" : Number((100 * w).toPrecision(2)) + " %");

async function tokensTab(state, query, body) {
  const t = await ask("tokens", { ...query, offset: state.from });
  const control = new Set(t.control), newest = most(t.version, -1);
  const range = { difference: most(t.ids.map((_, i) => Math.abs(apart(t, i) ?? 0)), 0.02), share: most(t.share, 1e-12), newest, oldest: -most(t.version.map((v) => (v === null ? null : -v)), -newest) };
  const details = h("dl.row.token-facts", { "aria-live": "polite" });
  const view = h("div.tokens", { tabindex: "0", role: "region", "aria-label": "Tokens" });
  const select = h("select", { id: "heat", onchange: () => draw() }, Object.keys(HEATS).map((name) => h("option", { value: name, disabled: OF_TRAINER.includes(name) && !t.recorded }, name + (OF_TRAINER.includes(name) && !t.recorded ? " (not recorded)" : ""))));
  const hint = h("span.soft");
  const origins = ["prompt", "sampled", "observed"];
  const word = (i) => t.words[t.ids[i]] ?? "";
  const show = (i) => fill(details, pairs([
    ["Token", `${t.offset + i + 1} of ${number(t.total)}`], ["Text", h("code", {}, JSON.stringify(word(i)))], ["Id", t.ids[i]], ["Origin", origins[t.origin[i]] + (control.has(t.ids[i]) ? ", control token" : "")],
    ["Trained on", t.origin[i] !== 1 ? "no, not sampled" : t.end === null ? "not recorded" : t.end === "used" ? "yes" : "no"], ["Log-prob, sampler", t.logprob[i] === null ? "–" : number(t.logprob[i], 4)],
    ["Log-prob, trainer", recorded(t.trainer[i] === null ? null : number(t.trainer[i], 4))], ["Difference", recorded(apart(t, i) === null ? null : number(apart(t, i), 3))], ["Weights", t.version[i] ?? "–"], ["Advantage", t.origin[i] === 1 && t.advantage !== null ? number(t.advantage) : "–"],
    ["Share of the step's gradient", recorded(t.share[i] === null ? null : `${share(t.share[i])} (episode ${share(t.weight)})`)],
  ]));
  const recorded = (text) => (text !== null ? text : t.recorded ? "–" : "not recorded");
  function piece(from) {
    const made = h("span.chunk");
    for (let i = from; i < Math.min(from + CHUNK, t.ids.length); i++) {
      const heat = HEATS[select.value](t, i, range);
      const token = addText(h("span.token." + origins[t.origin[i]] + (control.has(t.ids[i]) ? ".control" : "")), word(i) || `⟨${t.ids[i]}⟩`);
      token.dataset.i = i;
      if (heat !== null && heat > 0.02) token.style.backgroundColor = `color-mix(in srgb, var(--heat) ${Math.round(72 * heat)}%, transparent)`;
      if (i === 0 || t.turn[i] !== t.turn[i - 1] || t.origin[i] !== t.origin[i - 1]) made.append(h("span.border", {}, t.origin[i] === 0 ? "prompt" : `turn ${t.turn[i] + 1} ${origins[t.origin[i]]}`));
      made.append(token);
    }
    return made;
  }
  function draw() {
    hint.textContent = ` ${HINTS[select.value]}; control tokens have a frame, grey was not sampled`;
    view.replaceChildren();
    let at = 0;
    const end = h("span.end");
    view.append(end);
    const watch = new IntersectionObserver((seen) => {
      if (!seen.some((s) => s.isIntersecting)) return;
      end.before(piece(at));
      at += CHUNK;
      watch.unobserve(end);
      if (at < t.ids.length) watch.observe(end);
    });
    watch.observe(end);
  }
  view.addEventListener("mouseover", (event) => event.target.dataset.i && show(Number(event.target.dataset.i)));
  view.addEventListener("click", (event) => event.target.dataset.i && show(Number(event.target.dataset.i)));
  const go = (from, title) => link({ ...state, from: from || "" }, title);
  const further = [t.offset > 0 ? go(Math.max(0, t.offset - 20000), "← before ") : null, t.offset + t.ids.length < t.total ? go(t.offset + t.ids.length, "after →") : null];
  const sampled = t.logprob.filter((v) => v !== null);
  fill(body, h("div.heat", {}, h("label", { for: "heat" }, "Heat by "), select, hint, t.total > t.ids.length ? h("span", {}, ` ${number(t.offset + 1)} to ${number(t.offset + t.ids.length)} of ${number(t.total)} `, further) : null), details, view);
  show(t.origin.indexOf(1) >= 0 ? t.origin.indexOf(1) : 0);
  if (!sampled.length) view.before(h("p.soft", {}, t.total ? "No log-probs were recorded." : "The endpoint hides the tokens of this episode."));
  draw();
}
