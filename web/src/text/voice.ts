// The browser's own speech recognition, where it has one.
import { language } from "../state/look";

let running: { stop(): void } | null = null;

/** Listens until the speaker pauses, or stops listening if it does already. False where the browser cannot. */
export function listen(heard: (words: string) => void, changed: (isListening: boolean) => void): boolean {
  if (running) {
    running.stop();
    return true;
  }
  const Recognition = window.SpeechRecognition ?? window.webkitSpeechRecognition;
  if (!Recognition) return false;
  const one = new Recognition();
  one.lang = language.value === "zh" ? "zh-CN" : "en-US";
  one.onresult = (event: { results: { 0: { transcript: string } }[] }) =>
    heard(Array.from(event.results, (result) => result[0].transcript).join(" "));
  one.onend = () => {
    running = null;
    changed(false);
  };
  one.start();
  running = one;
  changed(true);
  return true;
}
