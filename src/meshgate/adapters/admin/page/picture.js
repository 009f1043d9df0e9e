// The picture: callers, this gateway, and the places that it sends streams to. The boxes are text that a screen reader
// reads; the links between them are drawn under them and move as streams do.

import { byId, el, mark, say, show, svg, sync } from "./dom.js";
import { byteRate, count, health, rateText, SIGN, things } from "./format.js";

const KINDS = {
  services: "Services here",
  servers: "Consul servers",
  partition: "Partition",
  datacenter: "Datacenter",
  "peer-import": "Peer",
  "peer-export": "Exported to peers",
};

const SHOWN_REASONS = 2;
const SHOWN_CALLERS = 3;
let links = []; // what is drawn: [box, rate, whether it is of refused streams]

function box(node) {
  const parts = { kicker: el("div", { class: "kicker" }), title: el("div", { class: "node-title" }), note: el("div", { class: "node-note" }) };
  node.append(parts.kicker, parts.title, parts.note);
  node.parts = parts;
  return node;
}

function fill(node, kicker, title, note, look = "") {
  say(node.parts.kicker, kicker);
  say(node.parts.title, title);
  say(node.parts.note, note);
  mark(node.parts.note, "class", `node-note ${look}`);
}

function makePlace() {
  const rate = el("strong");
  const more = el("span");
  const opened = el("span");
  const node = box(el("li", { class: "node place" }));
  node.append(el("div", { class: "amount" }, rate, opened, more));
  Object.assign(node.parts, { rate, more, opened });
  return node;
}

function describe(place, gateway) {
  const look = place.endpoints === 0 ? "bad" : place.down ? "bad" : health(place.healthy, place.endpoints);
  if (place.kind === "services") {
    const down = place.down ? `, ${count(place.down)} not served` : "";
    const note = `${SIGN[look]} ${count(place.healthy)} of ${things(place.endpoints, "endpoint")} healthy${down}`;
    return [`Services of ${gateway.datacenter}`, things(place.destinations, "service"), note, look];
  }
  const thing = place.kind === "servers" ? "endpoint" : "gateway";
  const note = `${SIGN[look]} ${count(place.healthy)} of ${things(place.endpoints, thing)} healthy`;
  return [KINDS[place.kind], place.name || things(place.destinations, "name"), note, look];
}

function updatePlace(node, place) {
  if (place.kind === "refused") {
    const more = place.reasons.length - SHOWN_REASONS;
    const shown = place.reasons.slice(0, SHOWN_REASONS).map((each) => each.reason).join(", ");
    fill(node, "Refused", more > 0 ? `${shown} and ${count(more)} more` : shown, `${count(place.streams)} since the start`);
  } else {
    fill(node, ...describe(place, place.gateway));
  }
  say(node.parts.rate, rateText(place.rate));
  say(node.parts.opened, place.kind === "refused" || place.open === null ? "" : `${count(place.open)} open`);
  const moving = place.received_rate || place.sent_rate;
  say(node.parts.more, moving ? byteRate(place.received_rate + place.sent_rate) : "");
  mark(node, "class", `node place${place.kind === "refused" ? " refused" : ""}${place.rate || place.open ? "" : " idle"}`);
}

export function renderPicture(state) {
  const { gateway, totals } = state;
  const callers = byId("callers");
  const here = byId("here");
  for (const node of [callers, here]) if (!node.parts) box(node);
  fill(callers, "Callers", `${rateText(totals.streams_rate)} new`, `${things(totals.open, "stream")} open`);
  renderCallers(callers, state.callers);
  fill(here, `${gateway.datacenter || "?"} / ${gateway.partition}`, gateway.id, `${byteRate(totals.received_rate)} in, ${byteRate(totals.sent_rate)} out`);

  const places = state.places.shown.map((place) => ({ ...place, gateway }));
  if (totals.refused) {
    places.push({ kind: "refused", name: "", rate: totals.refused_rate, open: null, reasons: state.refused.reasons, streams: totals.refused, received_rate: null, sent_rate: null });
  }
  const drawn = [];
  sync(byId("places"), places, (place) => `${place.kind} ${place.name}`, makePlace, (node, place) => {
    updatePlace(node, place);
    drawn.push([node, motion(place), place.kind === "refused"]);
  });
  links = [[callers, Math.max(motion({ rate: totals.streams_rate, received_rate: totals.received_rate, sent_rate: totals.sent_rate }), totals.refused_rate ?? 0), false], ...drawn];
  const more = byId("places-more");
  show(more, state.places.left_out > 0);
  say(more, `and ${things(state.places.left_out, "more place")}, listed below`);
  draw();
}

/** Who carries most, by the name that Consul has for the address. */
function renderCallers(node, { total, rows }) {
  if (!node.parts.who) node.append(node.parts.who = el("ul", { class: "who", "aria-label": "Clients that send most" }));
  const lines = rows.slice(0, SHOWN_CALLERS).map((row) => ({
    key: row.client,
    text: [row.caller ?? row.client, `${count(row.open)} open`, row.rate ? byteRate(row.rate) : ""].filter(Boolean).join(" · "),
    title: row.client,
  }));
  const more = total - lines.length;
  if (more > 0) lines.push({ key: "more", text: `and ${things(more, "more client")}` });
  show(node.parts.who, lines.length > 0);
  sync(node.parts.who, lines, (line) => line.key, () => el("li"), (item, line) => {
    say(item, line.text);
    mark(item, "title", line.title ?? null);
  });
}

/** How lively a link is: streams per second, or kilobytes where that is more. */
function motion(place) {
  return Math.max(place.rate ?? 0, ((place.received_rate ?? 0) + (place.sent_rate ?? 0)) / 1000);
}

const pace = (rate) => (rate < 3 ? "slow" : rate < 30 ? "quick" : "fast");

function draw() {
  const area = byId("picture").getBoundingClientRect();
  if (!area.width || !links.length) return;
  const at = (node) => {
    const found = node.getBoundingClientRect();
    const [x, y] = [found.left - area.left, found.top - area.top];
    return { left: x, right: x + found.width, top: y, bottom: y + found.height, middle: y + found.height / 2 };
  };
  const here = at(byId("here"));
  const callers = at(byId("callers"));
  const stacked = callers.bottom < here.top;
  const lines = links.map(([node, rate, refused], index) => {
    const box = at(node);
    const path = index === 0 ? entry(box, here, stacked) : stacked ? rail(here, box, index / links.length) : curve(here, box);
    return { key: index === 0 ? "callers" : `${index}`, path, rate, refused };
  });
  const paths = lines.flatMap((line) => [
    { key: `l ${line.key}`, path: line.path, look: "link" },
    ...(line.rate > 0 ? [{ key: `s ${line.key}`, path: line.path, look: `stream ${pace(line.rate)}${line.refused ? " refused" : ""}` }] : []),
  ]);
  sync(byId("links"), paths, (each) => each.key, () => svg("path"), (node, each) => {
    mark(node, "d", each.path);
    mark(node, "class", each.look);
  });
}

const round = (...numbers) => numbers.map((each) => each.toFixed(1)).join(" ");

function entry(callers, here, stacked) {
  if (stacked) return `M${round(26, callers.bottom)}L${round(26, here.top)}`;
  return `M${round(callers.right, callers.middle)}L${round(here.left, callers.middle)}`;
}

function curve(here, place) {
  const middle = (here.right + place.left) / 2;
  return `M${round(here.right, here.middle)}C${round(middle, here.middle, middle, place.middle, place.left, place.middle)}`;
}

/** Where boxes lie under each other every place has a line of its own beside them; `part` of 1 is the outermost. */
function rail(here, place, part) {
  const x = 34 - 29 * part;
  return `M${round(x, here.bottom)}V${round(place.middle - 8)}Q${round(x, place.middle, x + 8, place.middle)}H${round(place.left)}`;
}

new ResizeObserver(draw).observe(byId("picture"));
