// A value that this browser remembers. What must survive a change of browser is not kept here, but asked of the API.
import { type Ref, ref, watch } from "vue";

/** A reference whose value is kept under this name; `fallback` where there is none, or none that can be read. */
export function stored<T>(name: string, fallback: T, store: () => Storage = () => localStorage): Ref<T> {
  const value = ref(read(name, fallback, store)) as Ref<T>;
  watch(
    value,
    (now) => {
      try {
        store().setItem(`nowserving.${name}`, JSON.stringify(now));
      } catch {
        // Storage is full or forbidden: the page works on, and forgets.
      }
    },
    { deep: true, flush: "sync" },
  );
  return value;
}

function read<T>(name: string, fallback: T, store: () => Storage): T {
  try {
    const text = store().getItem(`nowserving.${name}`);
    return text === null ? fallback : (JSON.parse(text) as T);
  } catch {
    return fallback;
  }
}

/** A unique id. (crypto.randomUUID is missing where the page is not served over https.) */
export function newId(): string {
  return Array.from(crypto.getRandomValues(new Uint8Array(12)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}
