// The table of destinations: filtered and ordered by the gateway, so that thousands of them cost the page nothing.

import { byId, el, mark, say, show, sync } from "./dom.js";
import { byteRate, count, health, percent, rateText, SIGN, things } from "./format.js";
import { explain } from "./explain.js";
import { drawHour, firstByte, hourChart, hourOf } from "./history.js";

const SETTLE = 200;
// Where the style hides the columns of the class "wide": a cell must not span columns that are not there.
const narrow = matchMedia("(max-width: 52rem)");
const tiny = matchMedia("(max-width: 22rem)");
const opened = new Set();
let latest = null;

function makeRow(row) {
  const title = el("span", { class: "title" });
  const sni = el("span", { class: "sni" });
  const id = `detail-${Math.random().toString(36).slice(2)}`;
  const button = el("button", { type: "button", class: "name", "aria-controls": id, onclick: () => toggle(row.sni) },
    el("span", { class: "arrow", "aria-hidden": "true" }, "▸"), el("span", { class: "both" }, title, sni));
  const badge = el("span", { class: "badge" });
  const cells = ["kind wide", "", "number", "number", "number wide", "number wide", "number wide", "number wide"].map((look) => el("td", { class: look }));
  cells[1].append(badge);
  const main = el("tr", { class: "main" }, el("td", {}, button), ...cells);
  const list = el("ul", { class: "endpoints" });
  const why = el("button", { type: "button", class: "small", onclick: () => explain(row.sni) }, "Explain this name");
  const chart = hourChart();
  const hour = el("p", { class: "muted" });
  const said = el("p", { class: "muted" });
  const detail = el("tr", { class: "detail", id }, el("td", {}, chart, hour, said, list, why));
  const body = el("tbody", {}, main, detail);
  body.parts = { title, sni, button, badge, cells, detail, list, why, chart, hour, said };
  return body;
}

function updateRow(body, row) {
  const { title, sni, button, badge, cells, detail, list, why, chart, hour, said } = body.parts;
  say(title, row.name);
  say(sni, row.sni);
  mark(sni, "title", row.sni);
  const look = row.served ? health(row.healthy, row.endpoints) : "bad";
  say(badge, `${SIGN[look]} ${count(row.healthy)} of ${count(row.endpoints)}`);
  mark(badge, "class", `badge ${look}`);
  say(cells[0], row.kind);
  const lived = hourOf(row);
  const numbers = [[row.open, count], [row.rate, rateText], [row.received_rate, byteRate], [row.sent_rate, byteRate], [row.facts.streams, count], [lived?.success ?? null, percent]];
  numbers.forEach(([value, words], index) => {
    const cell = cells[index + 2];
    say(cell, words(value));
    cell.classList.toggle("muted", !value);
  });
  cells.at(-1).classList.toggle("bad", lived !== null && lived.success !== null && lived.success < 0.999);
  const isOpen = opened.has(row.sni);
  mark(button, "aria-expanded", isOpen);
  mark(detail.firstChild, "colspan", tiny.matches ? 3 : narrow.matches ? 4 : 9);
  mark(body, "class", isOpen ? "open-row" : null);
  show(detail, isOpen);
  show(why, !row.sni.startsWith("*."));
  if (isOpen) {
    renderEndpoints(list, row);
    show(chart, lived !== null);
    say(hour, lived === null ? "No stream in the last hour." : [
      `last hour: success ${percent(lived.success)}`,
      things(lived.streams.reduce((sum, each) => sum + each, 0), "stream"),
      `${count(lived.failed.reduce((sum, each) => sum + each, 0))} failed`,
      firstByte(lived),
    ].filter(Boolean).join(" · "));
    say(said, row.words.join(" · "));
    show(said, row.words.length > 0);
    if (lived !== null) drawHour(chart, lived.streams, lived.failed);
  }
}

function renderEndpoints(list, row) {
  const lines = row.listed.map((each, index) => ({ ...each, key: `${index} ${each.address} ${each.port} ${each.instance}` }));
  const more = row.endpoints - row.listed.length;
  if (more > 0) lines.push({ key: "more", text: `and ${things(more, "more endpoint")}` });
  if (!row.endpoints) lines.push({ key: "none", text: "Consul knows no endpoint of it." });
  sync(list, lines, (line) => line.key, () => el("li"), (node, line) => {
    if (line.text) return say(node, line.text);
    if (!node.parts) {
      node.parts = [el("span", { class: "badge" }), el("span", { class: "mono" }), el("span", { class: "muted" }), el("span"), el("span", { class: "muted" })];
      node.append(...node.parts);
    }
    const [badge, address, where, cause, record] = node.parts;
    const look = !line.healthy ? "bad" : line.out ? "warn" : "ok";
    mark(badge, "class", `badge ${look}`);
    say(badge, `${SIGN[look]} ${!line.healthy ? "unhealthy" : line.out ? "ejected" : "healthy"}`);
    say(address, line.address.includes(":") ? `[${line.address}]:${line.port}` : `${line.address}:${line.port}`);
    say(where, `${line.instance} on ${line.node}${line.weight === 1 ? "" : `, weight ${line.weight}`}`);
    say(cause, [line.cause, line.out].filter(Boolean).join("; "));
    return say(record, line.record);
  });
}

function toggle(sni) {
  if (!opened.delete(sni)) opened.add(sni);
  renderDestinations(latest);
}

/** Why there is no route; what Consul has not said is not claimed. */
function none(state) {
  const { catalog_known: known, catalog_seconds: age } = state.gateway;
  if (!known) return "No routes: nothing is known of the catalog yet, Consul has not answered.";
  return `No routes: ${age ? "the last known catalog has" : "Consul has"} no mesh services, and no gateway of another datacenter.`;
}

export function renderDestinations(state) {
  latest = state;
  const { total, matching, rows } = state.destinations;
  const filtered = matching !== total;
  say(byId("shown"), filtered ? `${count(matching)} of ${count(total)} match` : things(total, "route"));
  sync(byId("destinations"), rows, (row) => row.sni, makeRow, updateRow);
  const left = matching - rows.length;
  const more = byId("more");
  show(more, left > 0 || !rows.length);
  if (left > 0) say(more, `and ${count(left)} more: narrow them down with the filter`);
  else if (!rows.length) say(more, total ? "No destination matches the filter." : none(state));
}

for (const width of [narrow, tiny]) width.addEventListener("change", () => latest && renderDestinations(latest));

/** Lets the filter and the order change what is asked for. */
export function watchDestinations(choice, poll) {
  let waiting = 0;
  byId("filter").addEventListener("input", (event) => {
    choice.filter = event.target.value;
    clearTimeout(waiting);
    waiting = setTimeout(poll, SETTLE);
  });
  byId("sort").addEventListener("change", (event) => {
    choice.sort = event.target.value;
    poll();
  });
}
