// Operator actions from the server's OpenAPI document: each POST /ops/<things>/{id}/<verb> is a button; its body schema is the form.
import { call, Trouble } from "./api.js";
import { el, find, say } from "./dom.js";

let actions = {};
let afterAction = () => {};

/** Reads the actions of each list from the OpenAPI document. done: called after each successful action. */
export async function loadActions(done) {
  afterAction = done;
  const openapi = await (await fetch("../openapi.json")).json();
  actions = {};
  for (const [path, methods] of Object.entries(openapi.paths)) {
    const [, things, one, verb] = path.match(/^\/ops\/(\w+)\/(\{\w+\}\/)?(\w+)$/) || [];
    if (!things || !methods.post) continue;
    const reference = methods.post.requestBody?.content?.["application/json"]?.schema?.$ref || "";
    const schema = openapi.components.schemas[reference.split("/").pop()] || { properties: { reason: { type: "string" } } };
    (actions[things] ||= []).push({ things, verb, isForAll: !one, summary: methods.post.summary, schema });
  }
}

/** The buttons for one row. */
export function buttons(things, row) {
  return (actions[things] || []).filter((action) => !action.isForAll && changes(action.verb, row)).map((action) => el("button", {
    type: "button", "data-at": `${row.id} ${action.verb}`, "aria-label": `${action.verb} ${row.id}`, click: () => openForm(action, row),
  }, action.verb.replaceAll("_", " ")));
}

/** The buttons for a whole list: the actions that take a filter. */
export function forAll(things) {
  return (actions[things] || []).filter((action) => action.isForAll).map((action) => el("button", {
    type: "button", click: () => openForm(action, null),
  }, `${action.verb.replaceAll("_", " ")} many…`));
}

/** Whether the action would change this row, judged by the row's fields. */
function changes(verb, row) {
  const has = "paused" in row;
  if (row.retired_at) return false;
  const ended = ["succeeded", "failed", "cancelled", "expired"].includes(row.status);
  if (verb === "resume") return !has || Boolean(row.paused || row.is_draining || row.parked || row.parked_models?.length);
  if (verb === "pause") return !has || !row.paused;
  if (verb === "retry") return row.status === undefined || ended;
  if (["cancel", "boost", "priority"].includes(verb)) return !ended && (verb === "cancel" || row.status !== "running");
  return true;
}

function openForm(action, row) {
  const dialog = find("action");
  const name = row ? `${action.verb.replaceAll("_", " ")} ${action.things.replace(/s$/, "")} ${row.id}` : `${action.verb} many ${action.things}`;
  const inputs = Object.entries(action.schema.properties || {}).map(([at, schema]) => input(at, schema, action.schema.required || []));
  find("action-title").textContent = name[0].toUpperCase() + name.slice(1);
  find("action-summary").textContent = action.summary || "";
  find("action-fields").replaceChildren(...inputs.map((one) => one.node));
  find("action-do").textContent = action.verb.replaceAll("_", " ");
  say(find("action-trouble"), "");
  find("action-back").onclick = () => dialog.close();
  dialog.querySelector("form").onsubmit = (event) => {
    event.preventDefault();
    send(action, row, inputs);
  };
  dialog.showModal();
}

async function send(action, row, inputs) {
  const body = Object.fromEntries(inputs.map((one) => [one.at, one.read()]).filter(([, value]) => value !== undefined));
  const button = find("action-do");
  button.disabled = true;
  try {
    await call(row ? `${action.things}/${encodeURIComponent(row.id)}/${action.verb}` : `${action.things}/${action.verb}`, body);
    find("action").close();
    afterAction();
  } catch (trouble) {
    if (!(trouble instanceof Trouble)) throw trouble;
    say(find("action-trouble"), trouble.status === 403 ? `${trouble.message} Sign in with a token that may write.` : trouble.message);
  } finally {
    button.disabled = false;
  }
}

/** A form field for one property of the body. read() returns undefined for an empty field. */
function input(at, schema, required) {
  const kinds = schema.anyOf || [schema];
  const kind = kinds.find((one) => one.type !== "null") || {};
  const id = `action-${at}`;
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
