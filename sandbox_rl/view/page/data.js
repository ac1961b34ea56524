// Questions go to the server, or to what an exported page carries with it.

const carried = document.getElementById("data");
const answers = carried ? JSON.parse(carried.textContent) : null;
export const exported = answers !== null;
const waiting = new Map();

const key = (question, query) =>
  question + "?" + new URLSearchParams(Object.entries(query).filter(([, v]) => v !== "" && v !== undefined && v !== null).map(([k, v]) => [k, String(v)]).sort()).toString();

export async function ask(question, query = {}) {
  const given = Object.fromEntries(Object.entries(query).filter(([, v]) => v !== "" && v !== undefined && v !== null));
  if (!exported) {
    const reply = await fetch("api/" + question + "?" + new URLSearchParams(given));
    const value = await reply.json();
    if (value.error) throw new Error(value.error);
    return value;
  }
  if (question === "episodes") return listed(given);
  const name = key(question, given);
  if (name in answers.values) return answers.values[name];
  if (name in answers.parts) return (await loadPart(answers.parts[name]))[name];
  throw new Error("this is not in the exported page; `sandbox-rl view` shows it from the run itself");
}

// Parts of an exported directory are scripts, which a page that was opened as a file may load.
function loadPart(number) {
  if (!waiting.has(number)) {
    waiting.set(number, new Promise((resolve, reject) => {
      globalThis.sandboxRlPart = (n, values) => waiting.get("done" + n)(values);
      waiting.set("done" + number, resolve);
      const script = document.createElement("script");
      script.src = "parts/" + number + ".js";
      script.onerror = () => reject(new Error("parts/" + number + ".js is missing"));
      document.head.append(script);
    }));
  }
  return waiting.get(number);
}

const EQUAL = ["phase", "step", "domain", "task_id", "stop", "state", "siblings", "end"];

function listed(query) {
  if (query.sql) throw new Error("SQL needs the run itself: `sandbox-rl view`");
  const text = (query.text || "").toLowerCase();
  const sort = query.sort || "started", sign = query.desc === "1" ? -1 : 1;
  const rows = answers.rows[Number(query.run || 0)].filter((row) =>
    EQUAL.every((name) => !(name in query) || String(row[name]) === String(query[name])) &&
    (!query.reward_min || (row.reward !== null && row.reward >= Number(query.reward_min))) &&
    (!query.reward_max || (row.reward !== null && row.reward <= Number(query.reward_max))) &&
    (!query.flag || (row.flags || "").split(" ").includes(query.flag)) &&
    (!text || [row.id, row.task_id, row.answer].some((v) => (v || "").toLowerCase().includes(text))));
  rows.sort((a, b) => sign * (a[sort] === b[sort] ? 0 : a[sort] === null ? -1 : b[sort] === null ? 1 : a[sort] < b[sort] ? -1 : 1));
  const offset = Number(query.offset || 0);
  return { rows: rows.slice(offset, offset + 100), total: rows.length, page: 100 };
}
