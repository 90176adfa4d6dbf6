// nextai-translator's parser, fed as in the app: each chunk from the network is decoded separately.
import { createParser } from "eventsource-parser";
import { main, messages } from "./report.mjs";

const headers = ({ key }) => ({ "Content-Type": "application/json", Authorization: `Bearer ${key}` });

async function stream(call, seen) {
  const body = JSON.stringify({ model: call.model, messages: messages(call), stream: true, ...call.more });
  const response = await fetch(`${call.base}/chat/completions`, { method: "POST", headers: headers(call), body });
  if (response.status !== 200) {
    const { error } = await response.json();
    seen.failed({ ...error, status: response.status, constructor: { name: "shown" } });
    return;
  }
  let finished = false;
  const parser = createParser((event) => {
    if (event.type !== "event") return;
    seen.done = event.data === "[DONE]";
    if (finished) return;
    let chunk;
    try {
      chunk = JSON.parse(event.data);
    } catch {
      if (!seen.done) seen.broken = event.data;
      finished = true; // The translator treats invalid JSON and a finish_reason as the end.
      return;
    }
    if (!chunk.choices?.length) return;
    const [{ delta, finish_reason }] = chunk.choices;
    seen.id = chunk.id;
    if (finish_reason) [seen.finish, finished] = [finish_reason, true];
    else if (delta.content) seen.show(delta.content);
  });
  for await (const piece of response.body) parser.feed(new TextDecoder().decode(piece));
}

async function models(call, seen) {
  const response = await fetch(`${call.base}/models`, { headers: headers(call) });
  seen.data = (await response.json()).data.map((model) => model.id);
}

await main({ stream, models });
