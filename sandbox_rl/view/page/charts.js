import { h, number } from "./dom.js";

const HEIGHT = 148;
const WHOLE = [1, 2, 5].flatMap((n) => [0, 1, 2, 3, 4, 5, 6].map((p) => n * 10 ** p)).sort((a, b) => a - b);
const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
export const COLOURS = ["--accent", "--c2", "--c3", "--c4", "--c5", "--c6"];

// A curve over the updates. series: [{label, values, band: [low, high]}]; events: [{step, what}].
export function chart({ title, hint, x, series, events = [], share = false, along = "step" }) {
  const legend = h("div.legend");
  const plot = h("div.plot");
  const box = h("figure.chart", { "aria-label": `${title}: ${hint || ""}` }, h("figcaption", {}, h("span.title", {}, title), hint && h("span.hint", { title: hint }, hint)), plot, legend);
  const shown = series.filter((s) => s.values.some((v) => v !== null && v !== undefined));
  const data = [x], options = [{}], bands = [];
  shown.forEach((one, index) => {
    const stroke = colour(COLOURS[index % COLOURS.length]);
    data.push(one.values);
    options.push({ label: one.label, stroke, width: 1.6, spanGaps: true, points: { show: x.length < 40, size: 4, stroke, fill: stroke } });
    if (one.band) {
      for (const edge of one.band) {
        data.push(edge);
        options.push({ stroke: "transparent", width: 0, points: { show: false }, spanGaps: true, side: true });
      }
      bands.push({ series: [data.length - 1, data.length - 2], fill: stroke + "26" });
    }
  });
  const say = (at) => {
    legend.replaceChildren(
      ...(at === null || at === undefined ? [] : [h("span.step", {}, along + " " + number(x[at]))]),
      ...shown.map((one, index) => {
        const value = at === null || at === undefined ? one.values.findLast((v) => v !== null) : one.values[at];
        const dot = h("span.dot");
        dot.style.background = `var(${COLOURS[index % COLOURS.length]})`;
        return h("span.entry", {}, dot, shown.length > 1 ? one.label + " " : "", h("b", {}, share && value !== null && value !== undefined ? (100 * value).toFixed(1) + " %" : number(value)));
      }),
    );
  };
  const axis = { stroke: colour("--soft"), grid: { stroke: colour("--line"), width: 1 }, ticks: { show: false }, font: "11px system-ui" };
  const scale = share ? { range: [0, 1] } : { range: (u, low, high) => padded(low, high) };
  requestAnimationFrame(() => {
    if (!plot.isConnected) return;
    const made = new uPlot({
      width: plot.clientWidth, height: HEIGHT, legend: { show: false }, padding: [8, 12, 0, 0],
      cursor: { sync: { key: along }, drag: { x: true, y: false }, y: false, points: { size: 5 } },
      scales: { x: { time: false, range: (u, low, high) => (low === high ? [low - 1, high + 1] : [low, high]) }, y: scale },
      axes: [{ ...axis, size: 24, space: 60, ...(along === "step" ? { incrs: WHOLE } : {}) }, { ...axis, size: 44, space: 32, values: (u, ticks) => ticks.map((t) => (share ? Math.round(100 * t) + " %" : number(t, 3))) }],
      series: options, bands,
      hooks: { draw: [(u) => marks(u, events)], setCursor: [(u) => say(u.cursor.idx)] },
    }, data, plot);
    new ResizeObserver(() => made.setSize({ width: plot.clientWidth, height: HEIGHT })).observe(plot);
  });
  say(null);
  return box;
}

function padded(low, high) {
  if (low === null || low === undefined) return [0, 1];
  const pad = (high - low) * 0.08 || Math.abs(high) * 0.1 || 1;
  return [low >= 0 && low - pad < 0 ? 0 : low - pad, high + pad];
}

function marks(u, events) {
  const { ctx, bbox } = u;
  ctx.save();
  for (const event of events) {
    const left = Math.round(u.valToPos(event.step, "x", true));
    if (left < bbox.left || left > bbox.left + bbox.width) continue;
    ctx.strokeStyle = colour(event.what.startsWith("alarm") ? "--bad" : event.what === "resumed" ? "--warn" : "--line");
    ctx.setLineDash([3, 3]);
    ctx.lineWidth = 1;
    ctx.beginPath();
    ctx.moveTo(left + 0.5, bbox.top);
    ctx.lineTo(left + 0.5, bbox.top + bbox.height);
    ctx.stroke();
  }
  ctx.restore();
}
