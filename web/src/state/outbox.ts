// Messages that the API has not accepted yet. Each is kept until the API has it, with one Idempotency-Key: closing the page or losing the
// network neither loses a question nor asks it twice.
import { computed } from "vue";
import { ApiError, call } from "../api/client";
import type { Attachment, Job } from "../api/types";
import { renew } from "./history";
import { watchJob } from "./line";
import { listModels, models } from "./models";
import { surely } from "./network";
import { baseModel } from "./preferences";
import { chosenId, extrasOf, metadataOf, refresh, sessions } from "./sessions";
import { newId, stored } from "./stored";

const CHAT = "/v1/chat/completions";
const IMAGES = "/v1/images/generations";

export interface Letter {
  once: string;
  session: string;
  text: string;
  files: Attachment[];
  order: Record<string, unknown>;
  at: number;
  problem: string;
  code: string;
}

export interface Picture {
  model: string;
  size: string;
  n: number;
  quality: string;
}

export const outbox = stored<Letter[]>("outbox", []);
export const lettersHere = computed(() => outbox.value.filter((one) => one.session === chosenId.value));
let isSending = false;

/** The question is on its way, to the assistant's own model or the visitor's. */
export function ask(session: string, text: string, files: Attachment[]): void {
  const own = extrasOf(session);
  const body: Record<string, unknown> = {
    model: own.model,
    stream: true,
    messages: [...importedMessages(session), { role: "user", content: text }],
  };
  if (own.temperature) body.temperature = Number(own.temperature);
  if (own.maxTokens) body.max_completion_tokens = Number(own.maxTokens);
  const more = files.length ? { attachments: files.map((one) => one.id) } : {};
  post(session, text, files, { endpoint: CHAT, body, ...more });
}

/** Pictures are asked for. */
export function draw(session: string, prompt: string, wanted: Picture): void {
  const body: Record<string, unknown> = { prompt, n: wanted.n };
  for (const name of ["model", "size", "quality"] as const) if (wanted[name]) body[name] = wanted[name];
  post(session, prompt, [], { endpoint: IMAGES, body });
}

/** A letter that was refused goes once more. */
export function again(letter: Letter): void {
  Object.assign(letter, { problem: "", code: "", once: newId() });
  send();
}

export function drop(letter: Letter): void {
  outbox.value = outbox.value.filter((one) => one.once !== letter.once);
}

/** What this job asked is asked once more. Raises ApiError. */
export async function retry(jobId: string, session: string): Promise<void> {
  const once = newId();
  const job = await surely(() => call<Job>(`v1/jobs/${jobId}/retry`, { method: "POST", once }));
  watchJob({ jobId: job.id, session, status: job.status, queue: job.queue });
  await Promise.all([renew(session), refresh(session)]);
}

/** All that was kept goes, in its order. */
export async function send(): Promise<void> {
  if (isSending) return;
  isSending = true;
  try {
    for (let letter = next(); letter; letter = next()) await deliver(letter);
  } finally {
    isSending = false;
  }
}

// What another key's visitor left here stays here.
const next = (): Letter | undefined =>
  outbox.value.find((one) => !one.problem && sessions.value.some((session) => session.id === one.session));

async function deliver(letter: Letter): Promise<void> {
  await decide(letter);
  const json = { ...letter.order, conversation: letter.session, metadata: metadataOf(letter.session) };
  try {
    const job = await surely(
      () => call<Job>("v1/jobs", { method: "POST", json, once: letter.once }),
      () => outbox.value.includes(letter),
    );
    delete imported.value[letter.session];
    watchJob({ jobId: job.id, session: letter.session, status: job.status, queue: job.queue });
    await Promise.all([renew(letter.session), refresh(letter.session)]).catch(() => undefined);
    drop(letter);
  } catch (error) {
    const refused = error instanceof ApiError ? error : new ApiError(String(error), 400, null);
    Object.assign(letter, { problem: refused.message, code: refused.code ?? "" });
  }
}

/** A chat says which model it is for; the models are unknown until the upstream was asked. */
async function decide(letter: Letter): Promise<void> {
  const body = letter.order.body as { model?: string };
  if (letter.order.endpoint !== CHAT || body.model) return;
  if (!models.value.length) await listModels().catch(() => undefined);
  body.model = baseModel.value;
}

function post(session: string, text: string, files: Attachment[], order: Record<string, unknown>): void {
  outbox.value.push({ once: newId(), session, text, files, order, at: Date.now() / 1000, problem: "", code: "" });
  const card = sessions.value.find((one) => one.id === session);
  if (card) sessions.value = [card, ...sessions.value.filter((one) => one !== card)];
  send();
}

/** Conversations that were imported: the API has not seen them yet, the first turn tells it. */
export const imported = stored<Record<string, { role: "user" | "assistant"; content: string }[]>>("imported", {});

function importedMessages(session: string): { role: string; content: string }[] {
  return imported.value[session] ?? [];
}
