// The last hour by the minute, as the gateway kept it: asked for once a minute, so that a page that is new has it too.

import { byId, el, mark, say, svg, sync } from "./dom.js";
import { brief, count, percent, quantile, things } from "./format.js";

const MINUTES = 60;
const HEIGHT = 100;
const EVERY = 60_000;
const minute = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit" });
const at = (unix) => minute.format(new Date(unix * 1000));

let known = new Map(); // by kind and name
let bounds = [];

/** Draws two numbers of each minute on top of each other: what went well, and what failed. */
export function drawHour(chart, good, bad) {
  if (!chart.parts) {
    chart.parts = [svg("path", { class: "good" }), svg("path", { class: "bad" })];
    chart.append(...chart.parts);
  }
  const top = Math.max(1, ...good.map((value, index) => value + bad[index]));
  const from = MINUTES - good.length;
  const bar = (index, low, high) =>
    high ? `M${from + index + 0.1} ${HEIGHT - (low / top) * HEIGHT}v${-Math.max(2, (high / top) * HEIGHT)}h.8V${HEIGHT - (low / top) * HEIGHT}z` : "";
  mark(chart.parts[0], "d", good.map((value, index) => bar(index, 0, value)).join(""));
  mark(chart.parts[1], "d", good.map((value, index) => bar(index, value, bad[index])).join(""));
  return top;
}

const total = (values) => values.reduce((sum, each) => sum + each, 0);

/** A chart for `drawHour`. */
export const hourChart = () =>
  svg("svg", { class: "hour", viewBox: `0 0 ${MINUTES} ${HEIGHT}`, preserveAspectRatio: "none", "aria-hidden": "true" });

function render(history) {
  const { ends, streams, failed, refused } = history;
  bounds = history.first_byte_bounds;
  known = new Map(history.destinations.map((each) => [`${each.kind} ${each.name}`, each]));
  const box = byId("hour");
  if (!box.chart) {
    box.chart = hourChart();
    box.prepend(box.chart);
  }
  const top = drawHour(box.chart, streams, failed);
  const some = ends.length > 0;
  say(byId("hour-top"), some ? `${count(top)} a minute` : "");
  const marks = some ? [45, 30, 15, 0].map((ago) => ({ ago, text: ago ? `−${ago} min` : at(ends.at(-1)) })) : [];
  sync(byId("hour-axis"), [{ ago: 60, text: some ? "−60 min" : "" }, ...marks], (each) => each.ago, () => el("span"), (node, each) => say(node, each.text));
  const tried = total(streams) + total(failed);
  const words = some
    ? [
        `${things(tried, "stream")} since ${at(ends[0] - 60)}`,
        `${count(total(failed))} failed`,
        `success ${tried ? percent(total(streams) / tried) : "–"}`,
        total(refused) ? `${count(total(refused))} refused that had no route, or no slot` : null,
      ]
    : ["The gateway has run for less than a minute."];
  say(byId("hour-words"), words.filter(Boolean).join(" · "));
}

/** What is known of a destination's hour; null for one without streams. */
export const hourOf = (row) => known.get(`${row.kind} ${row.name}`) ?? null;

/** The time to the first byte in words. */
export function firstByte(hour) {
  const [median, most] = [0.5, 0.99].map((part) => quantile(hour.first_bytes, bounds, part));
  const words = (value) => (value === Infinity ? `more than ${brief(bounds.at(-1))}` : `at most ${brief(value)}`);
  return median === null ? "" : `first byte: median ${words(median)}, 99 % ${words(most)}`;
}

/** Asks at once and then each minute, while the page is seen; `done` is called after each answer. */
export function watchHistory(done) {
  let asked = 0;
  async function ask() {
    if (document.hidden || Date.now() - asked < EVERY / 2) return;
    asked = Date.now();
    try {
      const response = await fetch("dashboard/history", { signal: AbortSignal.timeout(10_000) });
      if (!response.ok) return;
      render(await response.json());
      done();
    } catch (error) {
      if (!(error instanceof TypeError || error.name === "AbortError" || error.name === "TimeoutError")) throw error;
    }
  }
  setInterval(ask, EVERY);
  document.addEventListener("visibilitychange", ask);
  ask();
}
