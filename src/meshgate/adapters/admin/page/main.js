// Asks the gateway for its state once a second while the page is seen, and hands it to the parts of the page.

import { byId, mark, say, show, sync, el } from "./dom.js";
import { span, timeOfDay } from "./format.js";
import { renderDestinations, watchDestinations } from "./destinations.js";
import { watchExplain } from "./explain.js";
import { renderPicture } from "./picture.js";
import { watchHistory } from "./history.js";
import { renderConsul, renderEnded, renderProcess, renderRefused } from "./sections.js";
import { forgetTiles, renderTiles } from "./tiles.js";
import { watchWhatIf } from "./whatif.js";

const EVERY = 1000;
const LONGEST = 5000;
const PATIENCE = 8000;

const choice = { filter: "", sort: "busy" };
let last = null; // the last state
let answered = null; // when it came, by this page's clock
let told = ""; // what a screen reader was told last
let pause = EVERY;
let timer = 0;
let asking = null;

const WORDS = {
  ready: ["ready", "ok"],
  draining: ["draining", "warn"],
  starting: ["not ready", "warn"],
};

/** Tells a screen reader, once. */
function tell(text) {
  if (text !== told) say(byId("said"), (told = text));
}

function renderHead(state) {
  const { gateway } = state;
  const place = gateway.datacenter ? `${gateway.datacenter} / ${gateway.partition}` : "no datacenter yet";
  const own = gateway.id === gateway.service ? gateway.id : `${gateway.id} (${gateway.service})`;
  say(byId("name"), own);
  say(byId("place"), `${place} · meshgate ${gateway.version} · up ${span(gateway.uptime_seconds)}`);
  const [word, look] = WORDS[gateway.state];
  const pill = byId("state");
  say(pill, word);
  mark(pill, "class", `pill ${look}`);
  const age = gateway.catalog_seconds;
  const old = age === null ? "no catalog" : age ? `catalog ${span(age)} old` : "stale catalog";
  say(byId("stale"), old);
  show(byId("stale"), gateway.stale);
  const title = `${gateway.id} ${gateway.datacenter} ${word}`;
  if (document.title !== title) document.title = title;
  tell(`${own} in ${place} is ${word}${gateway.stale ? ", its catalog is stale" : ""}`);
}

function renderProblems(state) {
  const problems = [...state.problems];
  const { from_disk_seconds: age } = state.gateway;
  if (age !== null) problems.unshift(`Streams are placed by the catalog on disk, ${span(age)} old: Consul has not answered.`);
  show(byId("problems"), problems.length > 0);
  sync(byId("problem-list"), problems, (line) => line, () => el("li"), say);
}

function renderLive(problem) {
  const live = byId("live");
  mark(live, "class", problem ? "live bad" : "live ok");
  if (!problem) return say(byId("live-text"), "live");
  const since = answered === null ? "yet" : `since ${timeOfDay(answered / 1000)}`;
  say(byId("live-text"), `no answer ${since}`);
  // What it was is still to be read; that it is so is not claimed.
  mark(byId("state"), "class", "pill");
  document.title = `no answer ${since}`;
  return tell(`The gateway gives no answer ${since}`);
}

function render(state) {
  if (last && last.gateway.started !== state.gateway.started) forgetTiles();
  if (last && last.gateway.version !== state.gateway.version) location.reload();
  last = state;
  renderHead(state);
  renderProblems(state);
  renderTiles(state);
  renderPicture(state);
  renderDestinations(state);
  renderRefused(state);
  renderEnded(state);
  renderConsul(state);
  renderProcess(state);
}

async function poll() {
  clearTimeout(timer);
  asking?.abort();
  const control = (asking = new AbortController());
  const late = setTimeout(() => control.abort(), PATIENCE);
  try {
    const response = await fetch(`dashboard/state?${new URLSearchParams(choice)}`, { signal: control.signal });
    if (!response.ok) throw new Error(`status ${response.status}`);
    const state = await response.json();
    answered = Date.now();
    pause = EVERY;
    renderLive(false);
    render(state);
  } catch (error) {
    if (control !== asking) return; // another question took its place
    if (error instanceof TypeError || error.name === "AbortError" || error.message.startsWith("status")) {
      renderLive(true);
      pause = Math.min(LONGEST, pause * 1.5);
    } else {
      throw error;
    }
  } finally {
    clearTimeout(late);
    if (control === asking && !document.hidden) timer = setTimeout(poll, pause);
  }
}

document.addEventListener("visibilitychange", () => {
  if (document.hidden) clearTimeout(timer);
  else poll();
});

watchDestinations(choice, poll);
watchExplain();
watchWhatIf();
watchHistory(() => last && renderDestinations(last));
say(byId("zone"), `Times of day are of ${Intl.DateTimeFormat().resolvedOptions().timeZone}, days of UTC.`);
poll();
