// Calls with the official SDK, as in its README.
import OpenAI, { toFile } from "openai";
import { main, messages } from "./report.mjs";

const client = ({ base, key, options }) => new OpenAI({ baseURL: base, apiKey: key, ...options });

async function chat(call, seen) {
  const answer = await client(call).chat.completions.create({ model: call.model, messages: messages(call), ...call.more });
  Object.assign(seen, { id: answer.id, finish: answer.choices[0].finish_reason, usage: answer.usage });
  seen.show(answer.choices[0].message.content);
}

async function stream(call, seen) {
  const body = { model: call.model, messages: messages(call), stream: true, ...call.more };
  for await (const chunk of await client(call).chat.completions.create(body)) {
    seen.id = chunk.id;
    if (chunk.usage) seen.usage = chunk.usage;
    if (!chunk.choices.length) continue;
    const [{ delta, finish_reason }] = chunk.choices;
    if (delta.content) seen.show(delta.content);
    seen.finish = finish_reason ?? seen.finish;
  }
}

function drawn(answer, seen) {
  seen.pictures = answer.data.map((picture) => picture.b64_json ?? picture.url);
  seen.usage = answer.usage;
}

async function image(call, seen) {
  drawn(await client(call).images.generate({ model: call.model, prompt: call.say, ...call.more }), seen);
}

async function partials(call, seen) {
  const events = await client(call).images.generate({ model: call.model, prompt: call.say, stream: true, partial_images: 2 });
  for await (const event of events) {
    seen.data.push(event.type);
    seen.pictures.push(event.b64_json);
  }
}

async function edit(call, seen) {
  const image = await Promise.all(["first", "second"].map((name) => toFile(Buffer.from(name), `${name}.png`, { type: "image/png" })));
  drawn(await client(call).images.edit({ model: call.model, prompt: call.say, image }), seen);
}

async function embed(call, seen) {
  const answer = await client(call).embeddings.create({ model: call.model, input: [call.say, "second"] });
  Object.assign(seen, { data: answer.data.map((one) => one.embedding), usage: answer.usage });
}

async function moderate(call, seen) {
  const answer = await client(call).moderations.create({ input: call.say });
  seen.data = answer.results.map((one) => [one.flagged, one.categories.violence]);
}

async function models(call, seen) {
  for await (const one of client(call).models.list()) seen.data.push(one.id);
}

async function model(call, seen) {
  seen.data.push((await client(call).models.retrieve(call.say)).id);
}

await main({ chat, stream, image, partials, edit, embed, moderate, models, model });
