// An error in plain words: what happened and what to do.
import { i18n, say } from "../state/look";

export function plainly(code: string | null | undefined, message: string | undefined): string {
  const known = `trouble.${code}`;
  if (code && i18n.global.te(known, "en")) return say(known);
  return message ? say("saysWhat", { message: message.slice(0, 500) }) : "";
}
