// Text that a policy wrote is hostile: it is only ever put into text nodes, and what would be invisible, turn the
// direction of writing or control a terminal is shown as its code.

const ODD =
  /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u00ad\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff9-\ufffb\u{1d173}-\u{1d17a}\u{e0000}-\u{e0fff}]|[\ud800-\udfff]/gu;
const LINE = 2000; // characters of a line before it is broken off
const PIECE = 200000; // characters that are added at once by "show all"

export function addText(element, text) {
  let at = 0;
  for (const found of text.matchAll(ODD)) {
    if (found.index > at) element.append(text.slice(at, found.index));
    const code = document.createElement("span");
    code.className = "code";
    const number = found[0].codePointAt(0);
    code.textContent = number === 27 ? "ESC" : "U+" + number.toString(16).toUpperCase().padStart(4, "0");
    code.title = "a character that is not shown";
    element.append(code);
    at = found.index + found[0].length;
  }
  if (at < text.length) element.append(text.slice(at));
  return element;
}

// One line of hostile text for a table's cell.
export function oneLine(text, most = 80) {
  const short = text.replace(/\s+/g, " ").trim();
  return short.length > most ? short.slice(0, most) + "…" : short;
}

export function shortLines(text) {
  let cut = false;
  const lines = text.split("\n").map((line) => {
    if (line.length <= LINE) return line;
    cut = true;
    return line.slice(0, LINE) + " …";
  });
  return { text: lines.join("\n"), cut };
}

export const pieces = (text) =>
  Array.from({ length: Math.ceil(text.length / PIECE) }, (_, i) => text.slice(i * PIECE, (i + 1) * PIECE));

const WORDS =
  /(#[^\n]*)|("(?:[^"\\\n]|\\.)*"|'[^'\n]*')|(\$\(?\(?|\)\)|&&|\|\||[|;<>]+)|(?<=^|[;&|(\n]\s*)([\w./-]+)|\b(for|do|done|if|then|else|fi|while|in|import|from|def|return|print|class|with|as|try|except|not|and|or)\b/g;

// A command with its comments, strings, operators and program names marked.
export function addCommand(element, text) {
  let at = 0;
  if (text.length < 20000) {
    for (const found of text.matchAll(WORDS)) {
      if (!found[0]) continue;
      if (found.index > at) addText(element, text.slice(at, found.index));
      const kind = ["", "comment", "string", "operator", "program", "keyword"][found.slice(1).findIndex((x) => x) + 1];
      const part = document.createElement("span");
      part.className = "sh-" + kind;
      element.append(addText(part, found[0]));
      at = found.index + found[0].length;
    }
  }
  return addText(element, text.slice(at));
}

export function addDiff(element, text) {
  for (const line of text.split("\n")) {
    const part = document.createElement("span");
    part.className = line.startsWith("+ ") ? "added" : line.startsWith("- ") ? "removed" : line.startsWith("@@") ? "soft" : "";
    element.append(addText(part, line), "\n");
  }
  return element;
}
