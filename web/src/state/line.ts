// The tickets: every job of ours that has not ended. The first one of the chosen session is followed live, event by event and then word by
// word; the others are looked at now and then, because a browser opens no more than six connections to one server.
import { reactive } from "vue";
import { type ApiError, call } from "../api/client";
import { listen } from "../api/follow";
import { isOver, type Job, type Queue, type Status } from "../api/types";
import { isOffline, pause } from "./network";
import { chosenId } from "./sessions";

const LOOK_MS = 2_000;
const LOOK_HIDDEN_MS = 5_000;
const AGAIN_MS = 1_000;

export interface Ticket {
  jobId: string;
  session: string;
  status: Status;
  queue: Queue | null;
  text: string;
  first: number;
  isStreamed: boolean;
}

export const tickets = reactive(new Map<string, Ticket>());
const endings: ((ticket: Ticket, job: Job) => Promise<void> | void)[] = [];
let followed = "";
let abort = new AbortController();
let isLooking = false;

/** Calls `done` for every ticket whose job has ended, before it removes the ticket. */
export function onEnd(done: (ticket: Ticket, job: Job) => Promise<void> | void): void {
  endings.push(done);
}

/** From now on there is a ticket for this job, until it has ended. */
export function watchJob(job: { jobId: string; session: string; status: Status; queue?: Queue | null }): void {
  if (tickets.has(job.jobId)) return;
  tickets.set(job.jobId, { queue: null, text: "", first: job.queue?.position ?? 0, isStreamed: true, ...job });
  attend();
}

/** The job is asked to stop; its ticket goes when it has. Raises ApiError. */
export async function cancel(jobId: string): Promise<void> {
  const job = await call<Job>(`v1/jobs/${jobId}/cancel`, { method: "POST" }).catch((error: ApiError) => {
    if (error.status === 409) return null;
    throw error;
  });
  const ticket = tickets.get(jobId);
  if (ticket && job && isOver(job.status)) await settle(ticket, job);
}

/** The chosen session's first ticket is the one that is followed. */
export function attend(): void {
  const head = document.visibilityState === "visible" ? [...tickets.values()].find((one) => one.session === chosenId.value) : undefined;
  if ((head?.jobId ?? "") !== followed) {
    abort.abort();
    abort = new AbortController();
    followed = head?.jobId ?? "";
    if (head) follow(head, abort.signal);
  }
  if (!isLooking && tickets.size > 0) look();
}

async function follow(ticket: Ticket, signal: AbortSignal): Promise<void> {
  while (!signal.aborted && tickets.has(ticket.jobId)) {
    try {
      const job = await note(ticket, signal);
      if (isOver(job.status)) return await settle(ticket, job);
      if (job.status === "running" && ticket.isStreamed) await read(ticket, signal);
      else await waitWith(ticket, signal);
    } catch (error) {
      if (signal.aborted) return;
      const refused = error as ApiError;
      if (refused.status === 404) return lose(ticket);
      if (refused.status === 409) ticket.isStreamed = false;
      if (refused.isOffline) isOffline.value = true;
      await pause(AGAIN_MS);
    }
  }
}

/** Until the job's turn comes, and to its end when it is not streamed. */
async function waitWith(ticket: Ticket, signal: AbortSignal): Promise<void> {
  const turn = new AbortController();
  const stop = (): void => turn.abort();
  signal.addEventListener("abort", stop);
  const heard = (name: string, data: string): void => {
    const event = JSON.parse(data) as { job?: Job; queue?: Queue };
    if (name === "queue" && event.queue) hear(ticket, "queued", event.queue);
    if (!event.job) return;
    hear(ticket, event.job.status, event.job.queue);
    if (isOver(event.job.status) || (event.job.status === "running" && ticket.isStreamed)) stop();
  };
  try {
    await listen(`v1/jobs/${ticket.jobId}/events`, { event: heard }, turn.signal);
  } catch (error) {
    if (signal.aborted || !turn.signal.aborted) throw error;
  } finally {
    signal.removeEventListener("abort", stop);
  }
}

/** The answer as it is written. */
async function read(ticket: Ticket, signal: AbortSignal): Promise<void> {
  let text = "";
  const heard = (_: string, data: string): void => {
    if (data === "[DONE]") return;
    const chunk = JSON.parse(data) as { choices?: { delta?: { content?: string | null } }[]; error?: unknown };
    if (chunk.error) return;
    text += chunk.choices?.[0]?.delta?.content ?? "";
    // A stream that broke off begins anew: what is shown never becomes shorter.
    if (text.length > ticket.text.length) ticket.text = text;
  };
  await listen(`v1/jobs/${ticket.jobId}/stream`, { event: heard }, signal);
}

/** Those that are not followed, one after another. */
async function look(): Promise<void> {
  isLooking = true;
  while (tickets.size > 0) {
    await pause(document.visibilityState === "visible" ? LOOK_MS : LOOK_HIDDEN_MS);
    for (const ticket of [...tickets.values()]) {
      if (ticket.jobId === followed) continue;
      try {
        const job = await note(ticket);
        if (isOver(job.status)) await settle(ticket, job);
      } catch (error) {
        if ((error as ApiError).status === 404) lose(ticket);
      }
    }
  }
  isLooking = false;
}

async function note(ticket: Ticket, signal?: AbortSignal): Promise<Job> {
  const job = await call<Job>(`v1/jobs/${ticket.jobId}`, { signal });
  isOffline.value = false;
  if (!job.endpoint.endsWith("/chat/completions")) ticket.isStreamed = false;
  if (!isOver(job.status)) hear(ticket, job.status, job.queue);
  return job;
}

function hear(ticket: Ticket, status: Status, queue: Queue | null): void {
  ticket.status = status;
  ticket.queue = queue;
  ticket.first = Math.max(ticket.first, queue?.position ?? 0);
}

async function settle(ticket: Ticket, job: Job): Promise<void> {
  if (!tickets.has(ticket.jobId)) return;
  for (const done of endings) await Promise.resolve(done(ticket, job)).catch(() => undefined);
  lose(ticket);
}

function lose(ticket: Ticket): void {
  tickets.delete(ticket.jobId);
  attend();
}

document.addEventListener("visibilitychange", attend);
