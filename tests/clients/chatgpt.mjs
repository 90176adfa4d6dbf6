// ChatGPT-Web's client. It keeps its history by answer ids; `again` is a second question in the same conversation.
import { ChatGPTAPI } from "chatgpt";
import { main } from "./report.mjs";

async function ask(call, seen, more) {
  const api = new ChatGPTAPI({ apiBaseUrl: call.base, apiKey: call.key, systemMessage: "", completionParams: { model: call.model } });
  const send = (text, extra) => api.sendMessage(text, { timeoutMs: 150_000, ...more, ...extra });
  const first = await send(call.say);
  seen.id = first.id;
  if (call.again) {
    const second = await send(call.again, { parentMessageId: first.id });
    const third = await send(call.again, { parentMessageId: second.id });
    seen.ids = [first.id, second.id, third.id];
  }
  return first;
}

async function chat(call, seen) {
  const answer = await ask(call, seen);
  seen.finish = answer.detail.choices[0].finish_reason;
  seen.show(answer.text);
}

async function stream(call, seen) {
  let shown = 0;
  const onProgress = (partial) => {
    if (partial.text.length > shown) seen.show(partial.text.slice(shown));
    shown = Math.max(shown, partial.text.length);
    seen.finish = partial.detail.choices[0].finish_reason ?? seen.finish;
  };
  await ask(call, seen, { onProgress });
}

await main({ chat, stream });
