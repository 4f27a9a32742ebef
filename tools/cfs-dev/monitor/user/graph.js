// Draws the graphs of a page, and keeps page and graphs up to date.
//
//   <figure class="graph card" data-unit="bytes">      also: ops, ms, count, rate (bytes a second), part (of 1)
//     <h2>…</h2>
//     <data data-expr="PROMQL" data-label="node">      a line for each series, named by this label,
//     <data data-expr="PROMQL" data-name="p99">        or for the only one of this name
//   <figure class="graph card" data-kind="buckets">    bars: the expression is of cumulative buckets (`le`)
//
// What has class `live` is replaced by what the server says of it at the moment.
"use strict";

const REFRESH_MS = 5000;
const POINTS_MAX = 300;
const SVG = "http://www.w3.org/2000/svg";
const COLOURS = ["#2f7de1", "#e8743b", "#19a979", "#b65fd0", "#d9a400", "#e2467c", "#13a4b4", "#7d8a2e", "#8c6bd6", "#a5673f"];

// What an axis shows at least, so that nothing looks like nothing.
const LEAST = { ops: 1, ms: 0.1, count: 1, bytes: 1024, rate: 1024, part: 0.01 };

const UNITS = {
  ops: (v) => short(v) + "/s",
  ms: (v) => short(v) + " ms",
  count: short,
  bytes: (v) => binary(v),
  rate: (v) => binary(v) + "/s",
  part: (v) => short(v * 100) + " %",
};

function short(v) {
  const a = Math.abs(v);
  if (a >= 1e9) return trim(v / 1e9) + " G";
  if (a >= 1e6) return trim(v / 1e6) + " M";
  if (a >= 1e4) return trim(v / 1e3) + " k";
  return trim(v);
}

function trim(v) {
  const a = Math.abs(v);
  return String(+v.toFixed(a >= 100 || a === 0 ? 0 : a >= 10 ? 1 : a >= 1 ? 2 : 3));
}

function binary(v) {
  const names = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
  let at = 0;
  while (Math.abs(v) >= 1024 && at < names.length - 1) { v /= 1024; at += 1; }
  return trim(v) + " " + names[at];
}

// Marks of an axis from 0 to at least `most`: at most five, at round numbers of the unit.
function marks(most, unit) {
  const base = unit === "bytes" || unit === "rate" ? 1024 : 10;
  const scale = base ** Math.floor(Math.log(most) / Math.log(base));
  const steps = base === 1024 ? [1, 2, 4, 8, 16, 32, 64, 128, 256, 512] : [0.2, 0.5, 1, 2, 5];
  let step = steps.map((s) => s * scale * (base === 1024 ? 0.25 : 1)).find((s) => most / s <= 4) || scale * base / 4;
  if (unit === "count") step = Math.max(1, Math.ceil(step));
  const all = [];
  for (let v = 0; v < most + step && all.length < 7; v += step) all.push(v);
  return all;
}

function node(name, attributes, text) {
  const made = document.createElementNS(SVG, name);
  for (const key in attributes) made.setAttribute(key, attributes[key]);
  if (text !== undefined) made.textContent = text;
  return made;
}

async function ask(path, parameters) {
  const answer = await fetch(path + "?" + new URLSearchParams(parameters));
  const document = await answer.json();
  if (document.status !== "success") throw new Error(document.error);
  return document.data.result;
}

function colour(at) {
  return at < COLOURS.length ? COLOURS[at] : `hsl(${(at * 137.5) % 360} 55% 52%)`;
}

function byName(a, b) {
  return a.name.localeCompare(b.name, undefined, { numeric: true });
}

async function series(figure, range) {
  const end = Math.floor(Date.now() / 1000);
  const step = Math.max(5, Math.ceil(range / POINTS_MAX / 5) * 5);
  const all = [];
  for (const data of figure.querySelectorAll("data")) {
    const parameters = { query: data.dataset.expr, start: end - range, end, step };
    const found = (await ask("/api/v1/query_range", parameters)).map((one) => ({
      name: data.dataset.name || one.metric[data.dataset.label] || "",
      points: one.values.map(([time, value]) => [time, Number(value)]).filter(([, value]) => Number.isFinite(value)),
    }));
    all.push(...(data.dataset.name ? found : found.sort(byName)));
  }
  return { start: end - range, end, step, all: all.filter((one) => one.points.length > 0) };
}

// The box that is drawn in, with the marks of the vertical axis; gives back the scale and where the lines go.
function frame(figure, most, unit) {
  const width = Math.max(300, figure.clientWidth - 30), height = 210;
  const svg = node("svg", { viewBox: `0 0 ${width} ${height}`, preserveAspectRatio: "none" });
  const box = { left: 62, right: width - 8, top: 8, bottom: height - 22 };
  const all = marks(most, unit);
  const top = all[all.length - 1];
  const y = (v) => box.bottom - (v / top) * (box.bottom - box.top);
  for (const v of all) {
    svg.append(node("line", { class: v === 0 ? "axis" : "grid", x1: box.left, x2: box.right, y1: y(v), y2: y(v) }));
    svg.append(node("text", { x: box.left - 8, y: y(v) + 4, "text-anchor": "end" }, UNITS[unit](v)));
  }
  return { svg, box, y };
}

function put(figure, ...parts) {
  figure.querySelectorAll("svg, .legend, .empty").forEach((old) => old.remove());
  figure.append(...parts);
}

function nothing(figure, why) {
  const empty = document.createElement("div");
  empty.className = "empty";
  empty.textContent = why;
  put(figure, empty);
}

function clock(time, range) {
  const options = range > 86400 ? { month: "short", day: "numeric", hour: "2-digit" } : { hour: "2-digit", minute: "2-digit" };
  return new Date(time * 1000).toLocaleString([], { ...options, hour12: false });
}

// Names and values: at a time, or the last ones, of what still was measured at `fresh`.
function legend(all, format, at, fresh) {
  const made = document.createElement("div");
  made.className = "legend";
  all.forEach((one, number) => {
    const item = document.createElement("span");
    const square = document.createElement("i");
    square.style.background = colour(number);
    const value = document.createElement("b");
    const point = at === undefined ? one.points[one.points.length - 1] : nearest(one.points, at);
    value.textContent = " " + (point[0] < fresh ? "–" : format(point[1]));
    item.append(square, one.name, value);
    made.append(item);
  });
  return made;
}

function nearest(points, time) {
  return points.reduce((best, point) => (Math.abs(point[0] - time) < Math.abs(best[0] - time) ? point : best));
}

async function lines(figure, range) {
  const unit = figure.dataset.unit;
  const { start, end, step, all } = await series(figure, range);
  if (all.length === 0) return nothing(figure, "nothing was measured in this time");
  const values = all.flatMap((one) => one.points.map((point) => point[1]));
  const most = Math.max(...values, LEAST[unit]);
  const { svg, box, y } = frame(figure, most, unit);
  const x = (time) => box.left + ((time - start) / (end - start)) * (box.right - box.left);
  for (let part = 0; part <= 4; part += 1) {
    const time = start + (range * part) / 4;
    const anchor = part === 4 ? "end" : part === 0 ? "start" : "middle";
    svg.append(node("text", { x: x(time), y: box.bottom + 16, "text-anchor": anchor }, clock(time, range)));
  }
  all.forEach((one, number) => {
    let path = "", before = -Infinity;
    for (const [time, value] of one.points) {
      // What was not measured is not drawn.
      path += `${time - before > 2 * step ? "M" : "L"}${x(time).toFixed(1)} ${y(value).toFixed(1)}`;
      before = time;
    }
    svg.append(node("path", { d: path, stroke: colour(number), "stroke-linecap": "round" }));
  });
  const now = () => legend(all, UNITS[unit], undefined, end - 2 * step);
  const cursor = node("line", { class: "cursor", y1: box.top, y2: box.bottom, visibility: "hidden" });
  svg.append(cursor);
  svg.addEventListener("mousemove", (event) => {
    const at = (event.offsetX / svg.clientWidth) * svg.viewBox.baseVal.width;
    const time = start + ((at - box.left) / (box.right - box.left)) * (end - start);
    if (time < start || time > end) return;
    cursor.setAttribute("x1", at);
    cursor.setAttribute("x2", at);
    cursor.setAttribute("visibility", "visible");
    figure.querySelector(".legend").replaceWith(legend(all, UNITS[unit], time, 0));
  });
  svg.addEventListener("mouseleave", () => {
    cursor.setAttribute("visibility", "hidden");
    figure.querySelector(".legend").replaceWith(now());
  });
  put(figure, svg, now());
}

async function buckets(figure) {
  const { expr } = figure.querySelector("data").dataset;
  const found = (await ask("/api/v1/query", { query: expr }))
    .map((one) => ({ le: one.metric.le === "+Inf" ? Infinity : Number(one.metric.le), sum: Number(one.value[1]) }))
    .sort((a, b) => a.le - b.le);
  const total = found.length ? found[found.length - 1].sum : 0;
  if (!(total > 0)) return nothing(figure, "no operation in the last five minutes");
  const parts = found.map((one, at) => Math.max(0, one.sum - (at ? found[at - 1].sum : 0)) / total);
  const { svg, box, y } = frame(figure, Math.max(...parts), "part");
  const width = (box.right - box.left) / found.length;
  found.forEach((one, at) => {
    const left = box.left + at * width;
    const name = one.le === Infinity ? "more" : "≤" + one.le;
    const bar = node("rect", { x: left + 2, width: width - 4, y: y(parts[at]), height: box.bottom - y(parts[at]), rx: 2, fill: COLOURS[0] });
    bar.append(node("title", {}, `${name} ms: ${UNITS.part(parts[at])}`));
    svg.append(bar, node("text", { x: left + width / 2, y: box.bottom + 16, "text-anchor": "middle" }, name));
  });
  const note = document.createElement("div");
  note.className = "legend";
  note.textContent = `share of ${short(Math.round(total))} operations by their milliseconds`;
  put(figure, svg, note);
}

async function live() {
  const answer = await fetch(location.href);
  if (!answer.ok) throw new Error(`the page answers ${answer.status}`);
  const fresh = new DOMParser().parseFromString(await answer.text(), "text/html").querySelectorAll(".live");
  document.querySelectorAll(".live").forEach((old, at) => fresh[at] && old.replaceChildren(...fresh[at].childNodes));
}

async function draw() {
  const range = Number(document.getElementById("range").value);
  const trouble = document.getElementById("trouble");
  const parts = [...document.querySelectorAll("figure.graph")].map((figure) =>
    figure.dataset.kind === "buckets" ? buckets(figure) : lines(figure, range));
  const failed = (await Promise.allSettled(parts)).find((part) => part.status === "rejected");
  trouble.textContent = failed ? `not up to date: ${failed.reason.message}` : "";
}

document.addEventListener("DOMContentLoaded", () => {
  const range = document.getElementById("range");
  range.value = localStorage.getItem("range") || "900";
  range.addEventListener("change", () => { localStorage.setItem("range", range.value); draw(); });
  window.addEventListener("resize", draw);
  draw();
  setInterval(async () => {
    if (document.hidden) return;
    // The graphs tell of a server that does not answer.
    await live().catch(() => {});
    await draw();
  }, REFRESH_MS);
});
