// The box that a server name is typed into, and the gateway's explanation of what it does with it.

import { byId, el } from "./dom.js";
import { things } from "./format.js";

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
    const response = await fetch(`explain?${new URLSearchParams({ sni: name })}`, { signal: AbortSignal.timeout(10_000) });
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

export function watchExplain() {
  byId("explain").addEventListener("submit", (event) => {
    event.preventDefault();
    ask(byId("sni").value.trim());
  });
}
