// Notices to the visitor: a line on the page, the title, a notification.
import { ref } from "vue";
import { say } from "./look";

const SHOWN_MS = 6_000;
export const notice = ref<{ text: string; isBad: boolean } | null>(null);
export const unread = ref(0);
let timer = 0;

/** A line at the bottom of the page, for a while. */
export function tell(text: string, isBad = false): void {
  notice.value = { text, isBad };
  clearTimeout(timer);
  timer = window.setTimeout(() => {
    notice.value = null;
  }, SHOWN_MS);
}

/** The answer is there: the title says so, and a notification where the visitor allowed it. Nothing while they look. */
export function callBack(who: string, text: string): void {
  if (document.visibilityState === "visible" && document.hasFocus()) return;
  unread.value += 1;
  title();
  if (typeof Notification !== "undefined" && Notification.permission === "granted") {
    const shown = new Notification(say("answered", { who }), { body: text.slice(0, 120), tag: `nowserving-${who}` });
    shown.onclick = () => window.focus();
  }
}

function title(): void {
  document.title = unread.value ? `(${unread.value}) ${say("answerTitle")}` : "nowserving";
}

function seen(): void {
  if (document.visibilityState !== "visible") return;
  unread.value = 0;
  title();
}

document.addEventListener("visibilitychange", seen);
window.addEventListener("focus", seen);
