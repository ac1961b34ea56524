import { ask, exported } from "./data.js";
import { address, duration, fill, h, link, number, picked, rewardBadge, table } from "./dom.js";
import { oneLine } from "./text.js";

const COLUMNS = [
  { title: "Episode", key: "started" }, { title: "Step", key: "step", right: true }, { title: "Domain", key: "domain" }, { title: "Task" },
  { title: "Ended by", key: "stop" }, { title: "Reward", key: "reward", right: true }, { title: "Advantage", right: true },
  { title: "Turns", key: "turns", right: true }, { title: "Tokens", key: "sampled", right: true }, { title: "Time", key: "seconds", right: true }, { title: "Answer" }, { title: "Trained" },
];
export const ENDS = {
  used: "yes", not_judged: "not judged", equal_rewards: "equal rewards", stale: "stale", refilled: "refilled", cut: "cut", overlong: "overlong", no_tokens: "no tokens",
};

export async function episodesScreen(state, main) {
  const filters = ["text", "phase", "step", "domain", "task_id", "stop", "state", "siblings", "reward_min", "reward_max", "end", "flag", "sql", "sort", "desc", "offset"];
  const query = Object.fromEntries(filters.filter((name) => state[name]).map((name) => [name, state[name]]));
  const [found, values] = await Promise.all([ask("episodes", { run: state.run, ...query }), ask("choices", { run: state.run })]);
  const go = (change) => (location.hash = address({ ...state, offset: "", ...change }));
  const box = h("form.filters", { role: "search", onsubmit: (event) => { event.preventDefault(); go(Object.fromEntries(new FormData(box))); } },
    field("Text", h("input", { id: "search", name: "text", type: "search", value: state.text || "", placeholder: "id, task, answer …", size: 15 })),
    choice("Phase", "phase", values.phase), field("Step", h("input", { name: "step", inputmode: "numeric", size: 3, value: state.step || "" })),
    choice("Domain", "domain", values.domain), choice("Ended by", "stop", values.stop),
    field("Reward", h("span.range", {}, h("input", { name: "reward_min", size: 3, placeholder: "min", "aria-label": "reward at least", value: state.reward_min || "" }), h("input", { name: "reward_max", size: 3, placeholder: "max", "aria-label": "reward at most", value: state.reward_max || "" }))),
    values.end.length ? choice("Trained", "end", values.end) : null, values.flag.length ? choice("Flag", "flag", values.flag) : null,
    exported ? null : field("SQL", h("input.mono", { name: "sql", size: 16, placeholder: "turns > 5", value: state.sql || "" })),
    h("button", {}, "Filter"), Object.keys(query).some((name) => !["sort", "desc", "offset"].includes(name)) ? link({ run: state.run, view: "episodes" }, "clear") : null);
  function field(title, input) {
    return h("label", {}, h("span", {}, title), input);
  }
  function choice(title, name, options) {
    const select = h("select", { name, onchange: () => box.requestSubmit() }, h("option", { value: "" }, "any"), options.map((o) => h("option", { value: o }, ENDS[o] && name === "end" ? ENDS[o] : o)));
    select.value = state[name] || "";
    return field(title, select);
  }
  const columns = COLUMNS.map((c) => {
    if (!c.key) return c;
    const on = (state.sort || "started") === c.key, down = state.desc === "1";
    const sorted = on ? (down ? "descending" : "ascending") : "none";
    return { ...c, sorted, title: h("a.sort", { href: address({ ...state, offset: "", sort: c.key, desc: on && !down ? 1 : "" }) }, c.title, on ? (down ? " ↓" : " ↑") : "") };
  });
  const rows = found.rows.map((row) => picked(h("tr" + (row.replaced ? ".replaced" : ""), {},
    h("td.mono", {}, link({ run: state.run, view: "episode", episode: row.id }, row.id)),
    h("td.right", {}, number(row.step)), h("td", {}, row.domain), h("td.mono.task", {}, link({ run: state.run, view: "task", task: row.task_id }, oneLine(row.task_id || "", 22))),
    h("td", {}, row.state === "ended" ? (row.stop || "").replaceAll("_", " ") : row.state), h("td.right", {}, rewardBadge(row.reward, row.state)), h("td.right", {}, row.advantage === null ? "" : number(row.advantage)),
    h("td.right", {}, number(row.turns)), h("td.right", {}, number(row.sampled)), h("td.right", {}, duration(row.seconds)), h("td.answer", {}, oneLine(row.answer || "", 18)),
    h("td", {}, row.replaced ? "replaced" : row.end ? ENDS[row.end] : "", row.flags ? h("span.flag", { title: row.flags }, row.flags.split(" ").map((f) => f.replaceAll("_", " ")).join(", ")) : null)),
    { run: state.run, view: "episode", episode: row.id }));
  const offset = Number(state.offset || 0), page = found.page, last = Math.max(0, Math.floor((found.total - 1) / page) * page);
  const pageLink = (title, to, enabled) => (enabled ? h("a", { href: address({ ...state, offset: to || "" }) }, title) : h("span.soft", {}, title));
  const pages = (label) => h("nav.pages", { "aria-label": label }, pageLink("first", 0, offset > 0), pageLink("← before", offset - page, offset > 0),
    h("span", {}, found.total ? `${number(offset + 1)} to ${number(Math.min(offset + page, found.total))} of ${number(found.total)}` : "none"),
    pageLink("after →", offset + page, offset + page < found.total), pageLink("last", last, offset < last));
  fill(main, h("h1", {}, "Episodes"), box, pages("Pages"), table("Episodes", columns, rows), rows.length > 20 ? pages("Pages, again") : null,
    rows.length ? null : h("p.soft", {}, "No episode is like that."));
  return {};
}
