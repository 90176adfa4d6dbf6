// The turns of the chosen session, oldest first; older pages are fetched when the reader comes near the top.
import { reactive } from "vue";
import { call } from "../api/client";
import { isOver, type Message, type Page } from "../api/types";
import { watchJob } from "./line";
import { surely } from "./network";
import { learn, path } from "./sessions";

const PAGE = 40;

export interface Turn {
  n: number;
  jobId: string;
  question: Message;
  answer: Message;
}

export const history = reactive({ id: "", turns: [] as Turn[], before: "", hasMore: false, isLoading: false });

/** The newest page of this session. Raises ApiError. */
export async function show(id: string): Promise<void> {
  Object.assign(history, { id, turns: [], before: "", hasMore: false, isLoading: true });
  try {
    const page = await fetchPage(id, "");
    if (history.id !== id) return;
    take(id, page);
    history.before = page.last_id ?? "";
    history.hasMore = page.has_more;
    const last = history.turns.at(-1);
    if (last) learn(id, last.jobId).catch(() => undefined);
  } finally {
    if (history.id === id) history.isLoading = false;
  }
}

/** The page before. Raises ApiError. */
export async function more(): Promise<void> {
  const { id } = history;
  if (!history.hasMore || history.isLoading) return;
  history.isLoading = true;
  try {
    const page = await fetchPage(id, `&after=${history.before}`);
    if (history.id !== id) return;
    take(id, page);
    history.before = page.last_id ?? "";
    history.hasMore = page.has_more;
  } finally {
    history.isLoading = false;
  }
}

/** What is new of this session, if it is the one shown. */
export async function renew(id: string): Promise<void> {
  if (history.id !== id) return;
  const page = await fetchPage(id, "");
  if (history.id === id) take(id, page);
}

/** The turn is deleted. Raises ApiError. */
export async function removeTurn(turn: Turn): Promise<void> {
  await call(`${path(history.id)}/messages/${turn.question.id}`, { method: "DELETE" });
  history.turns = history.turns.filter((one) => one.n !== turn.n);
}

const fetchPage = (id: string, after: string): Promise<Page<Message>> =>
  surely(() => call<Page<Message>>(`${path(id)}/messages?limit=${PAGE}${after}`));

function take(id: string, page: Page<Message>): void {
  const known = new Map(history.turns.map((turn) => [turn.n, turn]));
  for (const message of page.data) {
    const other = page.data.find((one) => one.turn === message.turn && one.role !== message.role);
    if (message.role !== "user" || !other) continue;
    known.set(message.turn, { n: message.turn, jobId: message.job_id, question: message, answer: other });
    if (!isOver(message.status)) watchJob({ jobId: message.job_id, session: id, status: message.status });
  }
  history.turns = [...known.values()].sort((a, b) => a.n - b.n);
}
