// The lower parts of the page: refusals, news from Consul, and the gateway's own process.

import { byId, el, facts, mark, say, show, sync } from "./dom.js";
import { count, day, rateText, span, things, timeOfDay } from "./format.js";

const SOON = 30 * 86400;
const WORDS = {
  not_tls: "spoke no TLS",
  hello_malformed: "ClientHello malformed",
  hello_too_large: "ClientHello too large",
  hello_timeout: "ClientHello not in time",
  no_sni: "named no server",
  unknown_sni: "name without a route",
  no_healthy_endpoint: "all its endpoints are unhealthy",
  connect_failed: "endpoint not reached",
  connect_timeout: "endpoint did not answer",
  max_connections: "too many streams",
  max_connections_per_client: "too many of one client",
  draining: "the gateway drains",
};

const ENDS = {
  client_reset: "the client, or something on its side, reset it",
  endpoint_reset: "the endpoint, or something on its side, reset it",
  idle: "a timeout",
  drain: "the gateway stops",
  worker_lost: "its relay process ended",
  shed: "its slot was needed",
  internal_error: "a fault of the gateway: see its log",
};

function bars(list, rows) {
  const top = Math.max(1, ...rows.map((row) => row.value));
  sync(list, rows, (row) => row.key, () => {
    const node = el("li");
    node.parts = [el("span"), el("span", { class: "number" }), el("meter", { min: 0, "aria-hidden": "true" }), el("span", { class: "words" })];
    node.append(...node.parts);
    return node;
  }, (node, row) => {
    const [name, number, meter, words] = node.parts;
    say(name, row.name);
    say(words, row.words ?? "");
    say(number, row.text);
    mark(meter, "max", top);
    mark(meter, "value", row.value);
  });
}

export function renderRefused(state) {
  const { reasons, recent } = state.refused;
  const list = byId("reasons");
  mark(list, "class", "bars refusals");
  bars(list, reasons.map((row) => ({
    key: row.reason,
    name: row.reason,
    words: WORDS[row.reason] ?? "",
    text: row.rate ? `${count(row.total)}, ${rateText(row.rate)}` : count(row.total),
    value: row.total,
  })));
  const lines = recent.length ? recent : [{ none: true }];
  sync(byId("recent"), lines, (line) => (line.none ? "none" : `${line.end_time} ${line.client} ${line.reason}`), makeRefusal, () => {});
}

const clock = (text) => timeOfDay(Date.parse(text) / 1000);

/** A client, and who that is where Consul knows. */
const who = (line) => (line.caller ? `${line.client} (${line.caller})` : line.client);

function makeRefusal(line) {
  if (line.none) return el("li", { class: "muted" }, "Nothing was refused since the start.");
  const what = el("span", { class: "what" }, el("span", {}, line.reason), el("span", { class: "muted number" }, clock(line.end_time)));
  const name = el("span", { class: "mono" }, line.sni === null ? "(no server name)" : line.sni);
  const from = el("span", { class: "muted" }, line.detail ? `from ${who(line)}: ${line.detail}` : `from ${who(line)}`);
  return el("li", {}, what, name, from);
}

/** How streams ended, and those that did not end in order. */
export function renderEnded(state) {
  const { ends, streams, workers_lost: lost } = state.ended;
  bars(byId("ends"), Object.entries(ends).filter(([end, value]) => value && end !== "refused").map(([end, value]) => ({ key: end, name: end, words: ENDS[end] ?? "", text: count(value), value })));
  const rows = [...lost.map((each) => ({ lost: true, ...each })), ...streams];
  const lines = rows.length ? rows : [{ none: true }];
  sync(byId("ended"), lines, (line) => (line.none ? "none" : `${line.time ?? line.end_time} ${line.client} ${line.worker} ${line.end}`), makeEnd, () => {});
}

function makeEnd(line) {
  if (line.none) return el("li", { class: "muted" }, "All streams ended in order, or were refused.");
  const when = clock(line.time ?? line.end_time);
  if (line.lost) {
    return el("li", {}, el("span", { class: "what" }, el("span", { class: "bad" }, `relay process ${line.worker} ended: ${line.reason}`), el("span", { class: "muted number" }, when)),
      el("span", { class: "muted" }, `${things(line.streams, "stream")} ended with it`));
  }
  const what = el("span", { class: "what" }, el("span", {}, line.end), el("span", { class: "muted number" }, when));
  const name = el("span", { class: "mono" }, line.sni ?? "(no server name)");
  const lived = `from ${who(line)} to ${line.endpoint ?? "no endpoint"}, after ${span(line.duration_ms / 1000)}`;
  return el("li", {}, what, name, el("span", { class: "muted" }, lived));
}

/** What fails, each said once for all the queries that fail of it. */
function failures(watches) {
  const found = new Map();
  for (const watch of watches) {
    if (watch.error) found.set(watch.error, (found.get(watch.error) ?? 0) + watch.failing);
  }
  return [...found].map(([error, failing]) => ({ error, failing }));
}

export function renderConsul(state) {
  const { consul, gateway } = state;
  sync(byId("watch-errors"), failures(consul.watches), (each) => each.error, () => el("li"), (node, each) =>
    say(node, `✕ ${things(each.failing, "query fails", "queries fail")}: ${each.error}`));
  const watches = consul.watches.length ? consul.watches : [{ kind: consul.known ? "none yet" : "the agent has not answered yet", count: null, age_seconds: null, failing: 0, error: null }];
  sync(byId("watches"), watches, (watch) => watch.kind, () => {
    const node = el("tr", {}, el("td"), el("td", { class: "number" }), el("td", { class: "number" }));
    node.parts = [el("div"), el("div", { class: "bad" })];
    node.firstChild.append(...node.parts);
    return node;
  }, (node, watch) => {
    say(node.parts[0], watch.kind);
    say(node.parts[1], watch.error ? `✕ ${count(watch.failing)} of them failing` : "");
    show(node.parts[1], Boolean(watch.error));
    say(node.children[1], count(watch.count));
    say(node.children[2], watch.age_seconds === null ? "–" : span(watch.age_seconds));
  });
  const errors = Object.entries(consul.errors).filter(([, total]) => total);
  facts(byId("authority"), [
    ["CA root", expiry(consul.ca_root_expiry, gateway.now)],
    ["CA intermediate", consul.ca_intermediate_expiry === null && consul.ca_root_expiry !== null ? "none, the root signs" : expiry(consul.ca_intermediate_expiry, gateway.now)],
    ["Failed requests", errors.length ? errors.map(([status, total]) => `${status}: ${count(total)}`).join(", ") : "none"],
  ]);
}

function expiry(unix, now) {
  if (unix === null) return "not known yet";
  if (unix <= now) return [`✕ ended on ${day(unix)}`, "bad"];
  return [`${unix - now < SOON ? "! " : ""}ends in ${span(unix - now)}, ${day(unix)}`, unix - now < SOON ? "warn" : null];
}

const RESULTS = { under_way: [null, "under way"], done: [null, "✓ done"], failed: ["bad", "✕ failed"], refused: ["warn", "! refused"] };

/** The last upgrade that was asked for: when, from which version to which, and what came of it. */
function upgrade(last) {
  if (!last) return [];
  const [look, result] = RESULTS[last.result];
  const at = Date.parse(last.started) / 1000;
  const streams = last.result === "done" ? `: ${count(last.handed_over)} of ${things(last.streams, "stream")} handed over, ${count(last.kept)} kept, ${count(last.lost)} lost` : "";
  return [
    ["Last upgrade", `${day(at)} ${timeOfDay(at)}, from ${last.version_before} to ${last.version_after || "a version not known"}`],
    ["Its result", [`${result}${last.reason && `: ${last.reason}`}${streams}`, look]],
  ];
}

export function renderProcess(state) {
  const { gateway } = state;
  facts(byId("facts"), [
    ["Service", gateway.service],
    ["Instance", gateway.id],
    ["Datacenter", gateway.datacenter || "not known yet"],
    ["Partition", gateway.partition],
    ["Trust domain", gateway.trust_domain || "not known yet"],
    ["Version", gateway.version],
    ["Started", `${day(gateway.started)} ${timeOfDay(gateway.started)}`],
    ...upgrade(gateway.last_upgrade),
  ]);
  sync(byId("listeners"), gateway.listeners, (each) => `${each.name} ${each.address}`, (each) => el("li", {}, el("span", {}, each.name), el("span", { class: "mono" }, each.address.replace(/^:/, "*:")), el("span", { class: "muted" })), (node) => say(node.lastChild, gateway.listening ? "" : "not open yet"));
  bars(byId("workers"), gateway.workers.map((worker, index) => ({
    key: `${index}`,
    name: worker.pid === null ? `worker ${index}: being replaced` : `worker ${index}, process ${worker.pid}`,
    text: things(worker.open, "stream"),
    value: worker.open,
  })));
}
