// Server-sent events with a key: EventSource cannot send a header, so they are read from fetch.
import { createParser } from "eventsource-parser";
import { ApiError, open } from "./client";

export interface Heard {
  event?: (name: string, data: string, id?: string) => void;
  comment?: (text: string) => void;
}

/** Every event is heard until the stream ends, or `signal` ends it. Raises ApiError; offline when it breaks off. */
export async function listen(path: string, heard: Heard, signal: AbortSignal): Promise<void> {
  const answer = await open(path, { signal, headers: { Accept: "text/event-stream" } });
  if (answer.status === 204 || !answer.body) return;
  const parser = createParser({
    onEvent: (one) => heard.event?.(one.event ?? "message", one.data, one.id),
    onComment: (text) => heard.comment?.(text),
  });
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  try {
    while (true) {
      const { value, done } = await reader.read();
      if (done) return;
      parser.feed(value);
    }
  } catch (error) {
    if (signal.aborted) throw error;
    throw new ApiError("offline", 0, "offline");
  } finally {
    reader.cancel().catch(() => undefined);
  }
}
