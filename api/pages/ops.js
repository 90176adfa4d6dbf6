// The operators' page: sign-in, tabs, and one table that polls the API while the page is visible.
import { call, token, Trouble } from "./api.js";
import { el, find, say } from "./dom.js";
import { buttons, forAll, loadActions } from "./actions.js";
import { VIEWS } from "./views.js";

const POLL_MS = 2000;
const MAX_WAIT_MS = 30000;
let timer = 0;
let wait = POLL_MS;
let asked = 0; // number of the newest request: answers to older ones are dropped
let after = null;
let shown = "";

function place() {
  const [name, query] = location.hash.slice(1).split("?");
  return { name: VIEWS[name] ? name : "lanes", query: new URLSearchParams(query || "") };
}

function open() {
  const isIn = Boolean(token.get());
  find("enter").hidden = isIn;
  find("view").hidden = find("tabs").hidden = find("leave").hidden = !isIn;
  clearTimeout(timer);
  if (!isIn) {
    find("state").textContent = "";
    find("token").focus();
    return;
  }
  after = null;
  shown = "";
  const { name, query } = place();
  find("tabs").replaceChildren(...Object.entries(VIEWS).map(([at, view]) =>
    el("a", { href: `#${at}`, "aria-current": at === name ? "page" : null }, view.title)));
  document.title = `${VIEWS[name].title} · nowserving`;
  filters(VIEWS[name], query);
  frame(VIEWS[name]);
  refresh();
}

function filters(view, query) {
  const fields = view.filters.map(({ name, label, type, choices, first }) => {
    const value = query.get(name) ?? first ?? "";
    const id = `filter-${name}`;
    const field = choices
      ? el("select", { id, name, change: apply }, el("option", { value: "" }, "any"),
        choices.map((one) => el("option", { value: one, selected: one === value }, one)))
      : el("input", { id, name, type: type || "text", value, autocomplete: "off", spellcheck: "false" });
    return el("span", {}, el("label", { for: id }, label), field);
  });
  find("filters").replaceChildren(...fields, ...(fields.length ? [el("button", {}, "Find")] : []));
  find("filters").hidden = !fields.length;
}

function apply(event) {
  event.preventDefault();
  const wanted = new URLSearchParams([...new FormData(find("filters"))].map(([name, value]) => [name, value.trim()]));
  const { name } = place();
  const kept = [...wanted].filter(([at, value]) => value || VIEWS[name].filters.some((one) => one.name === at && one.first));
  const hash = `#${name}?${new URLSearchParams(kept)}`;
  if (hash === location.hash) refresh();
  else location.hash = hash;
}

function frame(view) {
  const table = document.querySelector("table");
  table.caption.textContent = view.title;
  table.tHead.replaceChildren(el("tr", {}, view.columns.map((one) => el("th", { scope: "col", class: one.kind }, one.name)),
    el("th", { scope: "col" }, el("span", { class: "unseen" }, "Actions"))));
  table.tBodies[0].replaceChildren();
  find("many").replaceChildren();
  say(find("empty"), "");
}

async function refresh() {
  clearTimeout(timer);
  if (document.hidden || !token.get()) return;
  const mine = ++asked;
  const { name, query } = place();
  const view = VIEWS[name];
  const wanted = new URLSearchParams(view.fixed);
  for (const one of view.filters) {
    const value = query.get(one.name) ?? one.first ?? "";
    if (value) wanted.set(one.name, value);
  }
  if (after) wanted.set("after", after);
  try {
    const page = await call(`${name}?${wanted}`);
    if (mine !== asked) return;
    wait = POLL_MS;
    say(find("trouble"), "");
    find("state").textContent = `Live, ${new Date().toLocaleTimeString("en-GB")}`;
    render(name, view, page);
  } catch (trouble) {
    if (!(trouble instanceof Trouble)) throw trouble;
    if (mine !== asked) return;
    if (trouble.status === 401) return leave(`${trouble.message} Sign in again.`);
    wait = Math.min(MAX_WAIT_MS, wait * 2);
    say(find("trouble"), trouble.message);
    find("state").textContent = `Not live; next try in ${Math.round(wait / 1000)} s`;
  }
  timer = setTimeout(refresh, wait);
}

function render(name, view, page) {
  find("first").hidden = !after;
  find("next").hidden = !page.has_more;
  find("next").onclick = () => turn(page.last_id);
  if (!find("many").hasChildNodes()) find("many").replaceChildren(...forAll(name));
  say(find("empty"), page.data.length ? "" : page.has_more ? "None among those looked at so far: go on with Next page." : view.empty);
  const now = JSON.stringify(page.data);
  const body = document.querySelector("tbody");
  // Durations change, so every poll renders the rows again; the focused element keeps the focus.
  const at = body.contains(document.activeElement) ? document.activeElement.getAttribute("data-at") || document.activeElement.href : null;
  if (now === shown && at) return;
  shown = now;
  body.replaceChildren(...page.data.map((row) => el("tr", {}, view.columns.map((one, n) =>
    el(n ? "td" : "th", { scope: n ? null : "row", class: one.kind, "data-name": one.name }, one.show(row))),
    el("td", { class: "actions" }, buttons(name, row)))));
  if (at) [...body.querySelectorAll("button, a")].find((one) => (one.getAttribute("data-at") || one.href) === at)?.focus();
}

function turn(id) {
  after = id;
  shown = "";
  refresh();
}

function leave(why) {
  token.forget();
  asked += 1;
  say(find("trouble"), why || "");
  open();
}

async function enter(event) {
  event.preventDefault();
  token.keep(find("token").value.trim());
  find("token").value = "";
  try {
    await call("lanes?limit=1");
  } catch (trouble) {
    if (!(trouble instanceof Trouble)) throw trouble;
    return leave(trouble.message);
  }
  say(find("trouble"), "");
  open();
}

find("enter").addEventListener("submit", enter);
find("filters").addEventListener("submit", apply);
find("leave").addEventListener("click", () => leave());
find("first").addEventListener("click", () => turn(null));
addEventListener("hashchange", open);
document.addEventListener("visibilitychange", () => (document.hidden ? clearTimeout(timer) : refresh()));
open();
loadActions(refresh).then(() => {
  shown = "";
  refresh();
});
