// People and assistants: each is a session of the API. Picture, model and parameters are not the API's: this browser keeps them, and
// every turn carries them in its job's metadata, from where another browser takes them.
import { computed, ref } from "vue";
import { call } from "../api/client";
import type { Job, Page, Session } from "../api/types";
import { key } from "./key";
import { surely } from "./network";
import { newId, stored } from "./stored";

/** What makes an assistant more than a session. temperature: as text, empty for the model's own. */
export interface Extras {
  picture: string;
  detail: string;
  model: string;
  temperature: string;
  maxTokens: string;
}

export interface Draft extends Extras {
  title: string;
  systemPrompt: string;
}

export const PLAIN: Extras = { picture: "", detail: "", model: "", temperature: "", maxTokens: "" };
const PAGE = 100;

export const sessions = ref<Session[]>([]);
export const chosenId = stored("chosen", "");
export const extras = stored<Record<string, Extras>>("extras", {});
export const isListed = ref(false);
export const chosen = computed(() => sessions.value.find((one) => one.id === chosenId.value));

export const path = (id: string): string => `v1/sessions/${encodeURIComponent(id)}`;
export const extrasOf = (id: string): Extras => ({ ...PLAIN, ...extras.value[id] });

/** All of this key's sessions, the one last active first. Raises ApiError. */
export async function list(): Promise<void> {
  const found: Session[] = [];
  for (let after = ""; ; ) {
    const page = await surely(() => call<Page<Session>>(`v1/sessions?limit=${PAGE}${after}`));
    found.push(...page.data);
    if (!page.has_more || !page.last_id) break;
    after = `&after=${encodeURIComponent(page.last_id)}`;
  }
  sessions.value = found;
  isListed.value = true;
}

/** This session as it is now, at the top if it was just active. */
export async function refresh(id: string): Promise<void> {
  const now = await surely(() => call<Session>(path(id)));
  sessions.value = [now, ...sessions.value.filter((one) => one.id !== id)].sort((a, b) => b.last_active_at - a.last_active_at);
}

/** A new assistant, which is chosen. Raises ApiError. */
export async function create(draft: Draft): Promise<Session> {
  const id = `${key.prefix}chat-${newId()}`;
  const made = await call<Session>("v1/sessions", { method: "POST", json: { id, ...fields(draft) } });
  keep(id, draft);
  sessions.value = [made, ...sessions.value];
  chosenId.value = id;
  return made;
}

/** The assistant with another name, prompt, picture, model. Raises ApiError. */
export async function change(id: string, draft: Draft): Promise<void> {
  const now = await call<Session>(path(id), { method: "PATCH", json: fields(draft) });
  keep(id, draft);
  sessions.value = sessions.value.map((one) => (one.id === id ? now : one));
}

/** Deletes the session with its messages. Raises ApiError. */
export async function remove(id: string): Promise<void> {
  await call(path(id), { method: "DELETE" });
  sessions.value = sessions.value.filter((one) => one.id !== id);
  delete extras.value[id];
  if (chosenId.value === id) chosenId.value = "";
}

/** As metadata of a job: what another browser needs to show this assistant as this one does. */
export function metadataOf(id: string): Record<string, string> {
  return Object.fromEntries(Object.entries(extrasOf(id)).filter(([, value]) => value && value.length <= 512));
}

/** Extras that this browser does not know yet are those of the session's last job. */
export async function learn(id: string, jobId: string): Promise<void> {
  if (extras.value[id]) return;
  const job = await call<Job>(`v1/jobs/${jobId}`);
  extras.value[id] = { ...PLAIN, ...job.metadata, model: job.metadata.model ?? job.model };
}

function fields(draft: Draft): Record<string, unknown> {
  return { title: draft.title.trim() || null, system_prompt: draft.systemPrompt.trim() || null };
}

function keep(id: string, draft: Draft): void {
  const { picture, detail, model, temperature, maxTokens } = draft;
  extras.value[id] = { picture, detail, model, temperature, maxTokens };
}
