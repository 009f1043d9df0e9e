// What breaks if something goes away, and what ends soon: asked for when the panel is opened, and each minute then.

import { byId, el } from "./dom.js";
import { count, day, span, things } from "./format.js";

const EVERY = 60_000;
const SHOWN = 5;

function names(listing) {
  const shown = listing.rows.slice(0, SHOWN).map((row) => (row.now ? `${row.destination} (${row.left} of ${row.now} left)` : row.destination));
  const more = listing.total - shown.length;
  return [...shown, ...(more > 0 ? [`${count(more)} more`] : [])].join(", ");
}

function line(title, text, look = null) {
  return [el("dt", {}, title), el("dd", { class: look }, text)];
}

function listing(title, found, none, look) {
  return line(title, found.total ? `${things(found.total, "destination")}: ${names(found)}` : none, found.total ? look : null);
}

function lines(answer) {
  const { gateway, consul } = answer;
  const shown = [
    ...listing("No way now", answer.broken, "none", "bad"),
    ...listing("One endpoint only", answer.single, "none", "warn"),
  ];
  for (const each of answer.gone) {
    shown.push(...listing(`Without the gateways of ${each.name}`, each.cut, each.thinner.total ? `nothing is cut, ${things(each.thinner.total, "destination")} with fewer ways` : "nothing is cut", "warn"));
  }
  for (const node of answer.nodes.slice(0, SHOWN)) {
    shown.push(...line(`Without node ${node.node} (${node.datacenter})`, `${things(node.cut, "destination")} cut`, "warn"));
  }
  if (answer.nodes.length > SHOWN) shown.push(...line("Other nodes that cut something", count(answer.nodes.length - SHOWN), "warn"));
  if (gateway) {
    const { others } = gateway;
    const rest = others?.total === 0 ? "and there is no other gateway" : others === null ? "whether there are others is not known" : `${count(others.healthy)} of ${things(others.total, "other gateway")} healthy`;
    shown.push(...line("Without this gateway", `${things(gateway.streams, "open stream")} end, ${rest}`, others && !others.healthy ? "warn" : null));
  }
  const restart = consul.restart === null ? "a restart serves the kept catalog" : `a restart has no catalog: ${consul.restart}`;
  shown.push(...line("Without Consul", consul.age_seconds === null ? "nothing can be served: no catalog yet" : `streams go on by the last known catalog; ${restart}`, consul.restart === null ? null : "warn"));
  for (const end of answer.ends) {
    const when = end.expires === null ? (end.known ? "never" : "not known") : `${end.seconds > 0 ? `in ${span(end.seconds)}` : "past"}, ${day(end.expires)}`;
    shown.push(...line(`${end.what} ends`, when, end.near ? "bad" : null));
  }
  for (const limit of answer.limits) {
    shown.push(...line(`Limit: ${limit.what}`, limit.limit === null ? `${count(limit.used)}, limit not known` : `${count(limit.used)} of ${count(limit.limit)}`, limit.near ? "bad" : null));
  }
  return shown;
}

async function ask() {
  if (document.hidden || !byId("whatif").open) return;
  const list = byId("whatif-list");
  try {
    const response = await fetch("whatif", { signal: AbortSignal.timeout(10_000) });
    const answer = await response.json();
    list.replaceChildren(...(response.ok ? lines(answer) : line("What if", answer.error, "bad")));
  } catch {
    list.replaceChildren(...line("What if", "The gateway gives no answer.", "bad"));
  }
}

export function watchWhatIf() {
  byId("whatif").addEventListener("toggle", ask);
  setInterval(ask, EVERY);
}
