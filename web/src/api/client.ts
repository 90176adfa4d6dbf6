// One request of the public API: its address below this page's own, its key in a header, its refusal as an ApiError.
import { key } from "../state/key";

/** What the API refused, or `offline` when it could not be reached at all. message is for people. */
export class ApiError extends Error {
  constructor(
    message: string,
    readonly status: number,
    readonly code: string | null,
  ) {
    super(message);
  }

  get isOffline(): boolean {
    return this.status === 0;
  }

  /** The same request may well be taken later. */
  get isPassing(): boolean {
    return this.isOffline || this.status === 408 || this.status >= 500;
  }
}

export interface Wanted {
  method?: string;
  json?: unknown;
  form?: FormData;
  /** The Idempotency-Key: sent twice, it is still one job. */
  once?: string;
  signal?: AbortSignal;
  headers?: Record<string, string>;
}

/** Where this is, whatever path prefix the page is under. */
export function address(path: string): string {
  return new URL(path, new URL(".", document.baseURI)).href;
}

/** The API's link, made one of this origin: behind a proxy it may not know its own name. */
export function here(link: string): string {
  const found = /\/(v1\/artifacts\/.*)$/.exec(link);
  return found?.[1] ? address(found[1]) : link;
}

/** The answer, its body unread. Raises ApiError. */
export async function open(path: string, wanted: Wanted = {}): Promise<Response> {
  const headers: Record<string, string> = { ...key.headers(), ...wanted.headers };
  if (wanted.json !== undefined) headers["Content-Type"] = "application/json";
  if (wanted.once) headers["Idempotency-Key"] = wanted.once;
  let answer: Response;
  try {
    answer = await fetch(address(path), {
      method: wanted.method ?? "GET",
      headers,
      body: wanted.form ?? (wanted.json === undefined ? undefined : JSON.stringify(wanted.json)),
      signal: wanted.signal,
      cache: "no-store",
      referrerPolicy: "no-referrer",
    });
  } catch (error) {
    if (wanted.signal?.aborted) throw error;
    throw new ApiError("offline", 0, "offline");
  }
  if (!answer.ok) throw await refusal(answer);
  return answer;
}

/** The answer's JSON. Raises ApiError. */
export async function call<T>(path: string, wanted: Wanted = {}): Promise<T> {
  const answer = await open(path, wanted);
  try {
    return (await answer.json()) as T;
  } catch (error) {
    if (wanted.signal?.aborted) throw error;
    throw new ApiError("offline", 0, "offline");
  }
}

async function refusal(answer: Response): Promise<ApiError> {
  const body = await answer.json().catch(() => null);
  const error = body?.error;
  return new ApiError(error?.message ?? `${answer.status} ${answer.statusText}`, answer.status, error?.code ?? null);
}
