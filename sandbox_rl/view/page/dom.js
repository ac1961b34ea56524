import { addText } from "./text.js";

// h("a.quiet", {href: …}, children…): strings become text nodes, never markup.
export function h(spec, ...rest) {
  const [tag, ...classes] = spec.split(".");
  const element = document.createElement(tag || "div");
  if (classes.length) element.className = classes.join(" ");
  const plain = rest.length && rest[0] && rest[0].constructor === Object ? rest.shift() : {};
  for (const [name, value] of Object.entries(plain)) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "value") element.value = value;
    else element.setAttribute(name, value === true ? "" : value);
  }
  add(element, rest);
  return element;
}

export function add(element, children) {
  for (const child of children.flat(Infinity)) {
    if (child === undefined || child === null || child === false) continue;
    if (child instanceof Node) element.append(child);
    else addText(element, String(child));
  }
  return element;
}

export function fill(element, ...children) {
  element.replaceChildren();
  return add(element, children);
}

export const link = (where, ...children) => h("a", { href: address(where) }, ...children);

export function address(where) {
  const parts = Object.entries(where).filter(([, value]) => value !== undefined && value !== null && value !== "");
  return "#" + new URLSearchParams(parts).toString();
}

export function number(value, digits = 3) {
  if (value === null || value === undefined || Number.isNaN(value)) return "–";
  if (Number.isInteger(value)) return value.toLocaleString("en-US");
  if (value !== 0 && Math.abs(value) < 10 ** -digits) return value.toExponential(1);
  return Number(value.toPrecision(digits)).toLocaleString("en-US", { maximumSignificantDigits: digits });
}

export const percent = (value) => (value === null || value === undefined ? "–" : (100 * value).toFixed(1) + " %");

export function duration(seconds) {
  if (seconds === null || seconds === undefined) return "–";
  if (seconds < 1) return Math.round(1000 * seconds) + " ms";
  if (seconds < 100) return seconds.toFixed(1) + " s";
  if (seconds < 6000) return Math.round(seconds / 60) + " min";
  return seconds < 172800 ? (seconds / 3600).toFixed(1) + " h" : (seconds / 86400).toFixed(1) + " days";
}

export const rewardBadge = (value, state) =>
  h("span.reward" + (value === null || value === undefined ? ".none" : value >= 1 ? ".full" : value > 0 ? ".part" : ".zero"),
    value === null || value === undefined ? (state === "live" ? "under way" : "none") : number(value));

// Rows that j, k and Enter move over.
export const picked = (row, where) => {
  row.classList.add("pick");
  row.dataset.open = address(where);
  row.addEventListener("click", (event) => {
    if (!event.target.closest("a, button") && !getSelection().toString()) location.hash = row.dataset.open;
  });
  return row;
};

export function table(label, columns, rows) {
  const head = h("tr", {}, columns.map((c) => h("th" + (c.right ? ".right" : ""), { scope: "col", "aria-sort": c.sorted }, c.title)));
  return h("div.scroll", { tabindex: "0", role: "region", "aria-label": label }, h("table", { "aria-label": label }, h("thead", {}, head), h("tbody", {}, rows)));
}
