// The tabs: the fixed parameters, filters and columns of each list, and the text of an empty table.
import { count, el, since, span, until } from "./dom.js";

const LIMITS = { rpm: "req/min", tpm: "tok/min", ipm: "img/min", rpd: "req/day", max_in_flight: "in flight" };

function limits(gauges) {
  const known = Object.entries(gauges).filter(([, one]) => one.limit !== null);
  if (!known.length) return el("small", {}, "no limit known");
  return el("ul", { class: "limits" }, known.map(([name, one]) => el("li", {},
    el("meter", { min: 0, max: one.limit, value: Math.min(one.used ?? 0, one.limit), "aria-hidden": "true" }),
    `${count(one.left)} of ${count(one.limit)} ${LIMITS[name]} left`)));
}

function why(lane) {
  if (lane.paused) return paused(lane);
  if (lane.is_draining) return el("strong", {}, "draining: takes nothing new");
  if (!lane.blocked_by) return "–";
  return lane.wake_at ? `${lane.blocked_by}, ${until(lane.wake_at)} more` : lane.blocked_by;
}

function paused(one) {
  if (one.retired_at) return el("strong", {}, "retired");
  if (one.paused) return el("strong", {}, `paused${one.paused.reason ? `: ${one.paused.reason}` : ""}`);
  return one.is_draining ? el("strong", {}, "draining") : "";
}
const parked = (one) => [
  one.parked ? el("strong", {}, `parked: ${one.parked.reason || "refused"}`) : "",
  ...(one.parked_models || []).map((it) => el("small", {}, `parked for ${it.model}: ${it.reason}`)),
];
const code = (text) => el("code", {}, text);
const column = (name, show, kind = "") => ({ name, show, kind });
const number = (name, show) => column(name, show, "number");

const POOL = { name: "pool", label: "Pool" };
const MODEL = { name: "model", label: "Model" };
const USER = { name: "user", label: "User" };
const LANE = { name: "lane", label: "Lane", type: "number" };
const STATUS = { name: "status", label: "Status", choices: ["queued", "admitted", "running", "succeeded", "failed", "cancelled", "expired"] };

export const VIEWS = {
  lanes: {
    title: "Lanes", fixed: { order: "waiting", limit: 50 }, empty: "No job waits or runs.",
    filters: [POOL, MODEL, { name: "busy", label: "Only busy", choices: ["true", "false"], first: "true" }],
    columns: [
      column("Lane", (one) => [el("a", { href: `#flows?lane=${one.id}` }, one.model), el("small", {}, one.pool.name)]),
      number("Waiting", (one) => count(one.waiting)),
      number("Running", (one) => [count(one.running), one.admitted ? el("small", {}, `+${one.admitted} on their way`) : ""]),
      number("Oldest", (one) => span(one.oldest_wait_s)),
      number("In / out per min", (one) => `${count(one.arrivals_per_min)} / ${count(one.calls_per_min)}`),
      column("Limits", (one) => limits(one.limits)),
      column("Waits for", why),
      number("Last one in", (one) => span(one.eta_last_s)),
    ],
  },
  flows: {
    title: "Flows", fixed: { limit: 50 }, empty: "No job waits.", filters: [LANE, USER],
    columns: [
      column("User", (one) => [el("a", { href: `#jobs?user=${encodeURIComponent(one.user)}` }, one.user),
        el("small", {}, `${one.model} · ${one.pool}`)]),
      number("Waiting", (one) => `${count(one.waiting)}${one.is_whole ? "" : "+"}`),
      number("Running", (one) => count(one.running)),
      number("Oldest", (one) => span(one.oldest_wait_s)),
      number("Weight", (one) => count(one.weight)),
      column("State", paused),
    ],
  },
  jobs: {
    title: "Jobs", fixed: { limit: 50 }, empty: "No job fits.",
    filters: [{ name: "id", label: "Job id" }, USER, { name: "caller", label: "Key (id or name)" }, STATUS, POOL, MODEL],
    columns: [
      column("Job", (one) => [code(one.id), el("small", {}, `${one.endpoint.replace("/v1/", "")} · ${one.model}`)]),
      column("Status", (one) => [el("span", { class: `badge ${one.status}` }, one.status), one.error_code ? el("small", {}, one.error_code) : ""]),
      column("User", (one) => [one.user, el("small", {}, `key ${one.key.name || one.key.id} · ${one.pool}`)]),
      column("Place", (one) => (one.queue ? [`${count(one.queue.position)}.`, el("small", {}, one.queue.blocked_by || "")] : "–"), "number"),
      number("Its turn in", (one) => (one.queue ? span(one.queue.eta_s) : "–")),
      number("Waited", (one) => span(one.waited_s)),
      number("Attempts", (one) => count(one.attempts)),
    ],
  },
  credentials: {
    title: "Credentials", fixed: { limit: 50 }, empty: "There is no such credential.",
    filters: [POOL, { name: "parked", label: "Parked", choices: ["true", "false"] }],
    columns: [
      column("Credential", (one) => [`${one.id}`, el("small", {}, one.pool.name), ...parked(one), paused(one)]),
      column("Upstream", (one) => one.base_url || "default"),
      column("Models", (one) => (one.models.length ? one.models.map(model) : "not used yet")),
    ],
  },
  pools: {
    title: "Pools", fixed: { limit: 50 }, empty: "There is no pool yet.", filters: [{ name: "kind", label: "Of", choices: ["issued", "own"] }],
    columns: [
      column("Pool", (one) => [el("a", { href: `#lanes?pool=${encodeURIComponent(one.name)}` }, one.name), paused(one)]),
      number("Keys", (one) => count(one.keys)),
      number("Credentials", (one) => [count(one.credentials), one.parked ? el("strong", {}, `${one.parked} parked`) : ""]),
      number("Lanes", (one) => count(one.lanes)),
      number("Waiting", (one) => count(one.waiting)),
      number("Running", (one) => count(one.running)),
    ],
  },
  keys: {
    title: "Keys", fixed: { limit: 50 }, empty: "No key fits.",
    filters: [{ name: "name", label: "Name" }, { name: "kind", label: "Kind", choices: ["issued", "own"] }],
    columns: [
      column("Key", (one) => [el("a", { href: `#jobs?caller=${one.id}` }, one.name || `key ${one.id}`),
        el("small", {}, `${one.id} · ${one.kind} · ${one.pool.name}`), paused(one), one.revoked_at ? el("strong", {}, "revoked") : ""]),
      number("Waiting", (one) => count(one.waiting)),
      number("Running", (one) => count(one.running)),
      column("Caps", (one) => (one.caps.length ? el("ul", { class: "limits" }, one.caps.map(capped)) : "–")),
      number("Made", (one) => `${since(one.created_at)} ago`),
    ],
  },
  audit: {
    title: "Log", fixed: { limit: 50 }, empty: "No operator action yet.", filters: [],
    columns: [
      column("Act", (one) => [`${one.action} ${one.target}`, el("small", {}, one.reason || "")]),
      column("Who", (one) => one.operator),
      number("When", (one) => `${since(one.at)} ago`),
      column("Before", (one) => change(one.before)),
      column("After", (one) => change(one.after)),
    ],
  },
  workers: {
    title: "Workers", fixed: { limit: 50 }, empty: "No worker has reported. Start one: nowserving worker", filters: [],
    columns: [
      column("Process", (one) => code(one.id)),
      column("State", (one) => el("span", { class: `badge ${one.state}` }, one.state)),
      number("Runs", (one) => `${count(one.running)} of ${count(one.slots)}`),
      number("Up", (one) => since(one.started_at)),
      number("Heard of", (one) => `${since(one.seen_at)} ago`),
      column("What", (one) => el("ul", { class: "limits" }, one.jobs.slice(0, 8).map((job) => el("li", {},
        el("a", { href: `#jobs?id=${job.id}` }, job.model), ` ${since(job.started_at)}`)),
        one.jobs.length > 8 ? el("li", {}, `and ${one.jobs.length - 8} more`) : "")),
    ],
  },
};

const CAPS = { max_queued: "waiting", max_in_flight: "in flight", rpm: "req/min" };
const capped = (cap) => el("li", {}, Object.entries(CAPS).filter(([name]) => cap[name] !== null)
  .map(([name, label]) => `${count(cap[name])} ${label}`).join(", "), cap.endpoint ? el("small", {}, cap.endpoint) : "");

const change = (state) => (state ? el("small", {}, Object.entries(state).filter(([, value]) => value !== null)
  .map(([name, value]) => `${name} ${typeof value === "object" ? JSON.stringify(value) : value}`).join(", ")) : "–");

function model(one) {
  const recent = one.recent;
  const rate = recent.error_rate === null ? "no calls lately" : `${Math.round(recent.error_rate * 100)} % of ${recent.calls} calls failed`;
  return el("div", { class: "model" }, el("b", {}, one.model), ` ${rate}`,
    one.paused_until ? el("strong", {}, ` paused ${until(one.paused_until)} more`) : "",
    one.learned.window ? el("small", {}, `window ${one.learned.window}`) : "", limits(one.limits));
}
