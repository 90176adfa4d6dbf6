// The stored completion routes with openai-node.
import OpenAI from "openai";

const [base, key, model, say] = process.argv.slice(2);
const { chat } = new OpenAI({ baseURL: base, apiKey: key });
const ids = async (page) => {
  const found = [];
  for await (const one of page) found.push(one.id);
  return found;
};

const made = [];
for (const topic of ["tea", "tea", "coffee"]) {
  const body = { model, messages: [{ role: "user", content: say }], store: true, metadata: { topic } };
  made.push((await chat.completions.create(body)).id);
}
const listed = await ids(chat.completions.list({ limit: 2 }));
const tea = await ids(chat.completions.list({ metadata: { topic: "tea" }, order: "desc" }));
const found = await chat.completions.retrieve(made[0]);
const updated = await chat.completions.update(made[0], { metadata: { topic: "milk" } });
const messages = [];
for await (const message of chat.completions.messages.list(made[0])) messages.push([message.id, message.role, message.content]);
const deleted = await chat.completions.delete(made[0]);
const gone = await chat.completions.retrieve(made[0]).catch((error) => [error.constructor.name, error.status]);
const answer = found.choices[0].message.content;
console.log(JSON.stringify({ made, listed, tea, answer, metadata: updated.metadata, messages, deleted, gone }));
process.exit();
