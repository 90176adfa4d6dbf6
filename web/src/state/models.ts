// The models that this key's upstream has.
import { ref } from "vue";
import { call } from "../api/client";

export const models = ref<string[]>([]);
const NO_CHAT = /embedding|moderation|whisper|tts|dall-e|image|drawing|transcribe|realtime/;
const PICTURES = /dall-e|image|drawing/;

export const chatModels = (): string[] => models.value.filter((one) => !NO_CHAT.test(one));
export const imageModels = (): string[] => models.value.filter((one) => PICTURES.test(one));

/** Asked once; a request for models waits in line like any other. Raises ApiError. */
export async function listModels(): Promise<void> {
  const found = await call<{ data: { id: string }[] }>("v1/models");
  models.value = found.data.map((one) => one.id).sort();
}
