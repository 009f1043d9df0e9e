// The box that a server name is typed into, and the gateway's explanation of what it does with it.

import { byId, el, sync } from "./dom.js";
import { things } from "./format.js";

const SETTLE = 200;
let asked = 0;

function verdict(answer) {
  const routed = answer.decision === "routed";
  const healthy = answer.endpoints.filter((endpoint) => endpoint.healthy).length;
  return el("p", { class: "verdict" },
    el("span", { class: `pill ${routed ? "ok" : "bad"}` }, routed ? "✓ routed" : `✕ refused: ${answer.reason}`),
    el("span", { class: "mono" }, answer.sni || "(no server name)"),
    routed ? el("span", { class: "muted" }, `as ${answer.kind}, ${healthy} of ${things(answer.endpoints.length, "endpoint")} healthy`) : null);
}

function steps(answer) {
  return el("ol", { class: "steps", "aria-label": "Steps of the decision" },
    ...answer.steps.map((step) => el("li", {}, el("span", { class: "rule" }, step.rule), el("span", { class: "outcome" }, step.outcome))));
}

async function ask(name) {
  const mine = ++asked;
  const where = byId("explanation");
  let shown;
  try {
    const response = await fetch(`explain/name?${new URLSearchParams({ name })}`, { signal: AbortSignal.timeout(10_000) });
    const answer = await response.json();
    shown = response.ok ? [verdict(answer), steps(answer)] : [el("p", { class: "bad" }, answer.error)];
  } catch {
    shown = [el("p", { class: "bad" }, "The gateway gives no answer.")];
  }
  if (mine === asked) where.replaceChildren(...shown);
}

/** Explains a name in the box, and brings the box into view. */
export function explain(name) {
  byId("sni").value = name;
  ask(name);
  byId("explain").scrollIntoView({ block: "center" });
  byId("sni").focus({ preventScroll: true });
}

/** Offers names that the gateway knows; what it refused in the last hour comes first. */
async function offer(text) {
  try {
    const response = await fetch(`names?${new URLSearchParams({ text })}`, { signal: AbortSignal.timeout(10_000) });
    if (!response.ok || text !== byId("sni").value.trim()) return;
    const { refused, services, snis } = await response.json();
    const lately = refused.map((name) => ({ name, label: "refused in the last hour" }));
    const known = [...services, ...(text.includes(".") ? snis : [])].map((name) => ({ name, label: "" }));
    sync(byId("names"), [...lately, ...known], (each) => each.name,
      (each) => el("option", { value: each.name, label: each.label || null }), () => {});
  } catch {
    // Nothing is offered, and the page says elsewhere that the gateway is gone.
  }
}

export function watchExplain() {
  let waiting = 0;
  for (const event of ["focus", "input"]) {
    byId("sni").addEventListener(event, () => {
      clearTimeout(waiting);
      waiting = setTimeout(() => offer(byId("sni").value.trim()), SETTLE);
    });
  }
  byId("explain").addEventListener("submit", (event) => {
    event.preventDefault();
    ask(byId("sni").value.trim());
  });
}
