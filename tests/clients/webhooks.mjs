// Verifies one delivery with three libraries, or manages endpoints with the official SDK.
import OpenAI from "openai";
import { Webhook as Standard } from "standardwebhooks";
import { Webhook as Svix } from "svix";

const { base, key, url, body, headers, secret } = JSON.parse(process.argv[2]);
const client = new OpenAI({ baseURL: base, apiKey: key, webhookSecret: secret });

const verifiers = {
  openai: () => client.webhooks.unwrap(body, headers),
  standardwebhooks: () => new Standard(secret).verify(body, headers),
  // This library verifies without a return value.
  svix: () => new Svix(secret).verify(body, headers) ?? JSON.parse(body),
};

async function verify() {
  const seen = {};
  for (const [name, check] of Object.entries(verifiers)) {
    try {
      const event = await check();
      seen[name] = [event.type, event.data.id];
    } catch (error) {
      seen[name] = error.constructor.name;
    }
  }
  return seen;
}

async function manage() {
  const made = await client.webhooks.create({ name: "from node", url, event_types: ["job.failed"] });
  const changed = await client.webhooks.update(made.id, { event_types: ["job.failed", "job.expired"] });
  const rotated = await client.webhooks.rotateSecret(made.id, { keep_old_secret_active_for_24_hours: true });
  const tested = await client.webhooks.test(made.id, { event_type: "job.failed" });
  const listed = [];
  for await (const one of client.webhooks.list({ limit: 1 })) listed.push(one.name);
  const { data: types } = await client.webhooks.eventTypes.list();
  const deleted = await client.webhooks.delete(made.id);
  return {
    secrets: made.signing_secret !== rotated.signing_secret,
    types: changed.event_types,
    status: tested.status_code,
    listed,
    known: types.includes("job.started"),
    deleted: deleted.deleted,
  };
}

console.log(JSON.stringify(await (body ? verify() : manage())));
