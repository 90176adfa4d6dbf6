// The key that this page presents: the visitor's own, for as long as the tab is open; or none, where the operator has one for everybody.
import { computed } from "vue";
import { stored } from "./stored";

const own = stored("key", "", () => sessionStorage);
const meta = document.querySelector<HTMLMetaElement>('meta[name="nowserving-key"]')?.content ?? "own";
const visitor = meta.startsWith("shared ") ? meta.slice("shared ".length) : "";

export const key = {
  own,
  /** The operator has configured one; the browser never sees it. */
  isShared: Boolean(visitor),
  /** The conversations of this browser begin with it, where a key is shared. */
  prefix: visitor ? `${visitor}.` : "",
  isThere: computed(() => Boolean(own.value || visitor)),
  headers(): Record<string, string> {
    return own.value ? { Authorization: `Bearer ${own.value}` } : { "X-Nowserving-Page": "1" };
  },
};
