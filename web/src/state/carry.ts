// Conversations as one JSON file, out of the API and in again.
import { call } from "../api/client";
import type { Message, Page } from "../api/types";
import { imported } from "./outbox";
import { create, extrasOf, list, PLAIN, path, sessions } from "./sessions";

interface Carried {
  title: string | null;
  system_prompt: string | null;
  extras: Record<string, string>;
  messages: { role: "user" | "assistant"; text: string | null; created_at: number | null }[];
}

const FORMAT = "nowserving.conversations";

/** Exports every conversation of this key with its messages. Raises ApiError. */
export async function exported(): Promise<string> {
  await list();
  const all: Carried[] = [];
  for (const one of sessions.value) {
    all.push({ title: one.title, system_prompt: one.system_prompt, extras: { ...extrasOf(one.id) }, messages: await messagesOf(one.id) });
  }
  return JSON.stringify({ format: FORMAT, version: 1, conversations: all }, null, 1);
}

/** A new conversation for each in the file; returns their number. Its first turn carries the imported messages. Raises SyntaxError, ApiError. */
export async function importFrom(text: string): Promise<number> {
  const found = JSON.parse(text) as { format?: string; conversations?: Carried[] };
  if (found.format !== FORMAT || !Array.isArray(found.conversations)) throw new SyntaxError(FORMAT);
  for (const one of found.conversations.slice().reverse()) {
    const made = await create({ ...PLAIN, ...one.extras, title: one.title ?? "", systemPrompt: one.system_prompt ?? "" });
    const messages = one.messages.filter((message) => message.text && (message.role === "user" || message.role === "assistant"));
    imported.value[made.id] = messages.map((message) => ({ role: message.role, content: String(message.text) }));
  }
  return found.conversations.length;
}

async function messagesOf(id: string): Promise<Carried["messages"]> {
  const all: Carried["messages"] = [];
  for (let after = ""; ; ) {
    const page = await call<Page<Message>>(`${path(id)}/messages?order=asc&limit=100${after}`);
    all.push(...page.data.map(({ role, text, created_at }) => ({ role, text, created_at })));
    if (!page.has_more || !page.last_id) return all;
    after = `&after=${page.last_id}`;
  }
}
