// What this visitor prefers, where an assistant does not say.
import { computed } from "vue";
import { chatModels } from "./models";
import { stored } from "./stored";

const FIRST = "gpt-4o-mini";
export const preferredModel = stored("model", "");
/** The preferred model; else the usual one, where the upstream has it; else the first that it has. */
export const baseModel = computed(() => {
  const known = chatModels();
  if (preferredModel.value && (!known.length || known.includes(preferredModel.value))) return preferredModel.value;
  return !known.length || known.includes(FIRST) ? FIRST : (known[0] as string);
});
