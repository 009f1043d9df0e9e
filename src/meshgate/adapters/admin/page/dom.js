// Making and updating elements. Everything from outside becomes a text node or an attribute's value, never markup.

const SVG = "http://www.w3.org/2000/svg";

/** An element of the page found by its id. */
export const byId = (id) => document.getElementById(id);

function furnish(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "class") node.setAttribute("class", value);
    else if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value === true) node.setAttribute(name, "");
    else if (value !== false && value !== null) node.setAttribute(name, String(value));
  }
  node.append(...children.filter((child) => child !== null));
  return node;
}

/** A new HTML element; children are nodes or text. */
export const el = (tag, attributes = {}, ...children) =>
  furnish(document.createElement(tag), attributes, children);

/** A new SVG element. */
export const svg = (tag, attributes = {}, ...children) =>
  furnish(document.createElementNS(SVG, tag), attributes, children);

/** Gives a node this text. One that has it already is left alone, so that a selection or a reader's place survives. */
export function say(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

/** Gives a node this attribute unless it has it already; null takes it away. */
export function mark(node, name, value) {
  if (value === null) node.removeAttribute(name);
  else if (node.getAttribute(name) !== String(value)) node.setAttribute(name, String(value));
}

/** Shows or hides a node. */
export function show(node, visible) {
  if (node.hidden === visible) node.hidden = !visible;
}

const kept = new WeakMap();

/**
 * Makes the children of a parent follow a list. A child lives on as long as its key is in the list; focus stays where
 * it was though rows change places. Children that were there before the first call stay in front.
 */
export function sync(parent, items, key, make, update) {
  const before = kept.get(parent) ?? new Map();
  const wanted = new Map();
  for (const item of items) if (!wanted.has(key(item))) wanted.set(key(item), item);
  const focused = document.activeElement;
  let at = null;
  for (const [id, old] of before) {
    if (!wanted.has(id)) old.remove();
    else if (!at || at.compareDocumentPosition(old) & Node.DOCUMENT_POSITION_PRECEDING) at = old;
  }
  const after = new Map();
  for (const [id, item] of wanted) {
    const child = before.get(id) ?? make(item);
    update(child, item);
    after.set(id, child);
    if (child === at) at = at.nextSibling;
    else parent.insertBefore(child, at);
  }
  kept.set(parent, after);
  if (focused !== document.activeElement && focused.isConnected) focused.focus({ preventScroll: true });
}

/** Updates a list of facts: pairs of a term and a value, each value a text or [text, class]. */
export function facts(list, pairs) {
  const flat = pairs.flatMap(([term, value]) => [
    { key: `t ${term}`, tag: "dt", text: term, look: null },
    { key: `d ${term}`, tag: "dd", text: Array.isArray(value) ? value[0] : value, look: Array.isArray(value) ? value[1] : null },
  ]);
  sync(list, flat, (each) => each.key, (each) => el(each.tag), (node, each) => {
    say(node, each.text);
    mark(node, "class", each.look);
  });
}
