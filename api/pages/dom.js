// DOM elements from data. Text is set as text content; nothing here parses HTML.

/** An element with these attributes and children. Functions are listeners, true is an empty attribute, null and false are left out. */
export function el(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (typeof value === "function") made.addEventListener(key, value);
    else made.setAttribute(key, value === true ? "" : value);
  }
  made.append(...children.flat().filter((one) => one !== null && one !== undefined && one !== ""));
  return made;
}

export const find = (id) => document.getElementById(id);

/** Shows the node with this text, or hides it if the text is empty. */
export function say(node, text) {
  node.textContent = text || "";
  node.hidden = !text;
}

const UNITS = [["d", 86400], ["h", 3600], ["min", 60], ["s", 1]];

/** Seconds in two units at most: `2 h 5 min`. */
export function span(seconds) {
  if (seconds === null || seconds === undefined) return "–";
  if (seconds < 10) return `${Math.max(0, seconds).toFixed(1)} s`;
  let rest = Math.round(seconds);
  const first = UNITS.findIndex(([, size]) => rest >= size);
  return UNITS.slice(first, first + 2).map(([unit, size]) => {
    const n = Math.floor(rest / size);
    rest -= n * size;
    return n ? `${n} ${unit}` : "";
  }).filter(Boolean).join(" ");
}

export const since = (epoch) => (epoch ? span(Math.max(0, Date.now() / 1000 - epoch)) : "–");
export const until = (epoch) => (epoch ? span(Math.max(0, epoch - Date.now() / 1000)) : "–");
export const count = (n) => (n === null || n === undefined ? "–" : n.toLocaleString("en"));
