// Levers as the server's own document has them: every POST /ops/<things>/{id}/<verb> is a button, and its body is the form.
import { call, Trouble } from "./api.js";
import { el, find, say } from "./dom.js";

let levers = {};
let pulled = () => {};

/** Learns what can be done to what. done: called after each lever that was pulled. */
export async function learn(done) {
  pulled = done;
  const book = await (await fetch("../openapi.json")).json();
  levers = {};
  for (const [path, methods] of Object.entries(book.paths)) {
    const [, things, one, verb] = path.match(/^\/ops\/(\w+)\/(\{\w+\}\/)?(\w+)$/) || [];
    if (!things || !methods.post) continue;
    const reference = methods.post.requestBody?.content?.["application/json"]?.schema?.$ref || "";
    const schema = book.components.schemas[reference.split("/").pop()] || { properties: { reason: { type: "string" } } };
    (levers[things] ||= []).push({ things, verb, isForAll: !one, said: methods.post.summary, schema });
  }
}

/** The buttons for one row. */
export function buttons(things, row) {
  return (levers[things] || []).filter((lever) => !lever.isForAll && makes(lever.verb, row)).map((lever) => el("button", {
    type: "button", "data-at": `${row.id} ${lever.verb}`, "aria-label": `${lever.verb} ${row.id}`, click: () => ask(lever, row),
  }, lever.verb.replaceAll("_", " ")));
}

/** The buttons for all of them: those that take a filter. */
export function forAll(things) {
  return (levers[things] || []).filter((lever) => lever.isForAll).map((lever) => el("button", {
    type: "button", click: () => ask(lever, null),
  }, `${lever.verb.replaceAll("_", " ")} many…`));
}

/** Whether it would change anything, as far as can be seen from here. */
function makes(verb, row) {
  const has = "paused" in row;
  if (row.retired_at) return false;
  const ended = ["succeeded", "failed", "cancelled", "expired"].includes(row.status);
  if (verb === "resume") return !has || Boolean(row.paused || row.is_draining || row.parked || row.parked_models?.length);
  if (verb === "pause") return !has || !row.paused;
  if (verb === "retry") return row.status === undefined || ended;
  if (["cancel", "boost", "priority"].includes(verb)) return !ended && (verb === "cancel" || row.status !== "running");
  return true;
}

function ask(lever, row) {
  const dialog = find("lever");
  const name = row ? `${lever.verb.replaceAll("_", " ")} ${lever.things.replace(/s$/, "")} ${row.id}` : `${lever.verb} many ${lever.things}`;
  const inputs = Object.entries(lever.schema.properties || {}).map(([at, schema]) => input(at, schema, lever.schema.required || []));
  find("lever-title").textContent = name[0].toUpperCase() + name.slice(1);
  find("lever-said").textContent = lever.said || "";
  find("lever-fields").replaceChildren(...inputs.map((one) => one.node));
  find("lever-do").textContent = lever.verb.replaceAll("_", " ");
  say(find("lever-trouble"), "");
  find("lever-back").onclick = () => dialog.close();
  dialog.querySelector("form").onsubmit = (event) => {
    event.preventDefault();
    pull(lever, row, inputs);
  };
  dialog.showModal();
}

async function pull(lever, row, inputs) {
  const body = Object.fromEntries(inputs.map((one) => [one.at, one.read()]).filter(([, value]) => value !== undefined));
  const button = find("lever-do");
  button.disabled = true;
  try {
    await call(row ? `${lever.things}/${encodeURIComponent(row.id)}/${lever.verb}` : `${lever.things}/${lever.verb}`, body);
    find("lever").close();
    pulled();
  } catch (trouble) {
    if (!(trouble instanceof Trouble)) throw trouble;
    say(find("lever-trouble"), trouble.status === 403 ? `${trouble.message} Sign in with a token that may write.` : trouble.message);
  } finally {
    button.disabled = false;
  }
}

/** A field of the body: empty ones are left out. */
function input(at, schema, required) {
  const kinds = schema.anyOf || [schema];
  const kind = kinds.find((one) => one.type !== "null") || {};
  const id = `lever-${at}`;
  const common = { id, required: required.includes(at) };
  const label = el("label", { for: id }, at.replaceAll("_", " "), schema.description ? el("small", {}, schema.description) : "");
  const choices = kind.enum || (kind.type === "boolean" ? ["true", "false"] : null);
  const isNumber = kind.type === "integer" || kind.type === "number";
  const field = choices
    ? el("select", common, el("option", { value: "" }, "–"), choices.map((one) => el("option", { value: one }, one)))
    : el("input", { ...common, type: isNumber ? "number" : at === "key" && kind.type === "string" ? "password" : "text", step: kind.type === "integer" ? 1 : "any", min: kind.minimum,
      max: kind.maximum, maxlength: kind.maxLength, autocomplete: "off" });
  const read = () => {
    if (field.value === "") return undefined;
    if (kind.type === "boolean") return field.value === "true";
    return isNumber ? Number(field.value) : field.value;
  };
  return { at, node: el("p", {}, label, field), read };
}
