// The numbers of now, each with the last minute as a line.

import { byId, el, mark, say, svg } from "./dom.js";
import { brief, bytes, count, quantile, rate } from "./format.js";

const KEPT = 60;
const HEIGHT = 26;

const tiles = [
  { key: "open", title: "Open streams", value: (t) => t.open, show: (v) => [count(v), ""], note: (s) => limit(s) },
  { key: "new", title: "New streams", value: (t) => t.streams_rate, show: rate, note: (s) => `${count(s.totals.streams)} since the start` },
  { key: "in", title: "From callers", value: (t) => t.received_rate, show: perSecond, note: (s) => total(s.totals.received) },
  { key: "out", title: "To callers", value: (t) => t.sent_rate, show: perSecond, note: (s) => total(s.totals.sent) },
  { key: "connect", title: "Connect time", value: (_, s) => connect(s, 0.5), show: time, note: (s) => slow(s) },
  { key: "refused", title: "Refused", value: (t) => t.refused_rate, show: rate, note: (s) => `${count(s.totals.refused)} since the start` },
];

const made = new Map();

function perSecond(value) {
  const [number, unit] = bytes(value);
  return [number, unit && `${unit}/s`];
}

function limit(state) {
  return state.gateway.limit ? `of ${count(state.gateway.limit)} at most` : "no limit";
}

function total(value) {
  return `${bytes(value).join(" ")} since the start`;
}

const connect = (state, part) => quantile(state.totals.connects, state.connect_bounds, part);

function time(value) {
  if (value === null) return ["–", ""];
  if (value === Infinity) return ["> 5", "s"];
  return [`≤ ${brief(value).split(" ")[0]}`, brief(value).split(" ")[1]];
}

function slow(state) {
  const worst = connect(state, 0.95);
  return worst === null ? "no new connections" : `median; 95 % ${time(worst).join(" ")}`;
}

function make(tile) {
  const number = el("span");
  const unit = el("span", { class: "unit" });
  const note = el("dd", { class: "note" });
  const area = svg("path", { class: "area" });
  const line = svg("path", { class: "line" });
  const spark = svg("svg", { class: "spark", viewBox: `0 0 ${KEPT - 1} ${HEIGHT}`, preserveAspectRatio: "none", "aria-hidden": "true" }, area, line);
  const box = el("div", { class: "tile" }, el("dt", {}, tile.title), el("dd", {}, number, unit), note, spark);
  byId("tiles").append(box);
  return { box, number, unit, note, area, line, values: [] };
}

function draw(shown) {
  if (!shown.values.length) return;
  const known = shown.values.map((value) => (value === null || value === Infinity ? 0 : value));
  const top = Math.max(...known, 1e-9);
  const from = KEPT - known.length;
  const points = known.map((value, index) => `${from + index} ${(HEIGHT - 2 - (value / top) * (HEIGHT - 5)).toFixed(1)}`);
  mark(shown.line, "d", `M${points.join("L")}`);
  mark(shown.area, "d", `M${from} ${HEIGHT}L${points.join("L")}L${KEPT - 1} ${HEIGHT}Z`);
}

/** Begins the lines anew: the gateway was restarted. */
export function forgetTiles() {
  for (const shown of made.values()) shown.values = [];
}

export function renderTiles(state) {
  for (const tile of tiles) {
    if (!made.has(tile.key)) made.set(tile.key, make(tile));
    const shown = made.get(tile.key);
    const value = tile.value(state.totals, state);
    const [number, unit] = tile.show(value);
    say(shown.number, number);
    say(shown.unit, unit);
    say(shown.note, tile.note(state));
    mark(shown.box, "class", tile.key === "refused" && value > 0 ? "tile bad" : "tile");
    if (value !== null || shown.values.length) shown.values = [...shown.values, value].slice(-KEPT);
    draw(shown);
  }
}
