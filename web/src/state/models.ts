// The models that this key's upstream has.
import { watch } from "vue";
import { call } from "../api/client";
import { key } from "./key";
import { stored } from "./stored";

export const models = stored<string[]>("models", [], () => sessionStorage);
let listing: Promise<void> | undefined;
watch(key.own, () => {
  listing = undefined;
  models.value = [];
});
const NO_CHAT = /embedding|moderation|whisper|tts|dall-e|image|drawing|transcribe|realtime/;
const PICTURES = /dall-e|image|drawing/;

export const chatModels = (): string[] => models.value.filter((one) => !NO_CHAT.test(one));
export const imageModels = (): string[] => models.value.filter((one) => PICTURES.test(one));

/** The models are known. Asked once for each key; a request for models waits in line like any other. Raises ApiError. */
export function listModels(): Promise<void> {
  listing ??= ask().catch((error) => {
    listing = undefined;
    throw error;
  });
  return listing;
}

async function ask(): Promise<void> {
  const found = await call<{ data: { id: string }[] }>("v1/models");
  models.value = found.data.map((one) => one.id).sort();
}
