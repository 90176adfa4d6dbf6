// NextChat's SSE client, with handlers like its own. It times out when the headers take more than 60 s.
globalThis.document = { hidden: false, addEventListener() {}, removeEventListener() {} };
globalThis.window = globalThis;
const { fetchEventSource, EventStreamContentType } = await import("@fortaine/fetch-event-source");
const { main, messages } = await import("./report.mjs");

const REQUEST_TIMEOUT_MS = 60_000;
const headers = ({ key }) => ({ "Content-Type": "application/json", Accept: "application/json", Authorization: `Bearer ${key}` });

function stream(call, seen) {
  const controller = new AbortController();
  const requestTimeout = setTimeout(() => controller.abort(), REQUEST_TIMEOUT_MS);
  let finished = false;
  const finish = () => {
    finished = true;
    controller.abort();
  };
  return fetchEventSource(`${call.base}/chat/completions`, {
    method: "POST",
    headers: headers(call),
    body: JSON.stringify({ model: call.model, messages: messages(call), stream: true, ...call.more }),
    signal: controller.signal,
    openWhenHidden: true,
    async onopen(response) {
      clearTimeout(requestTimeout);
      if (response.ok && response.headers.get("content-type")?.startsWith(EventStreamContentType)) return;
      const { error } = await response.clone().json();
      seen.failed({ ...error, status: response.status, constructor: { name: "shown" } });
      finish();
    },
    onmessage(message) {
      if (message.data === "[DONE]") seen.done = true;
      if (message.data === "[DONE]" || finished) return finish();
      try {
        const chunk = JSON.parse(message.data);
        const choice = chunk.choices[0];
        seen.id = chunk.id;
        if (choice?.delta.content) seen.show(choice.delta.content);
        seen.finish = choice?.finish_reason ?? seen.finish;
      } catch {
        seen.broken = message.data; // NextChat logs "parse error" and continues.
      }
      return undefined;
    },
    onclose: finish,
    onerror(error) {
      throw error;
    },
  });
}

async function post(call, seen, path, body) {
  const wanted = { method: "POST", headers: headers(call), body: JSON.stringify({ model: call.model, ...body, ...call.more }) };
  const response = await fetch(`${call.base}/${path}`, wanted);
  const answer = await response.json();
  if (answer.error) seen.failed({ ...answer.error, status: response.status, constructor: { name: "shown" } });
  return answer;
}

async function chat(call, seen) {
  const { id, choices } = await post(call, seen, "chat/completions", { messages: messages(call), stream: false });
  if (!choices) return;
  Object.assign(seen, { id, finish: choices[0].finish_reason });
  seen.show(choices[0].message.content);
}

async function image(call, seen) {
  const { data } = await post(call, seen, "images/generations", { prompt: call.say, response_format: "b64_json" });
  seen.pictures = (data ?? []).map((picture) => picture.b64_json);
}

await main({ stream, chat, image });
