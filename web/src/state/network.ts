// Whether the API can be reached. The browser's own word is not enough: the server may be away while the network is there.
import { ref } from "vue";
import type { ApiError } from "../api/client";

export const isOffline = ref(!navigator.onLine);
window.addEventListener("offline", () => {
  isOffline.value = true;
});

/** After so many ms, or as soon as the network is back. */
export function pause(ms: number): Promise<void> {
  return new Promise((done) => {
    const end = (): void => {
      clearTimeout(timer);
      window.removeEventListener("online", end);
      done();
    };
    const timer = setTimeout(end, ms);
    window.addEventListener("online", end);
  });
}

/** What `ask` answers, asked again for as long as only the way there is broken. Raises ApiError for everything else. */
export async function surely<T>(ask: () => Promise<T>, goesOn: () => boolean = () => true): Promise<T> {
  for (let tries = 0; ; tries++) {
    try {
      const found = await ask();
      isOffline.value = false;
      return found;
    } catch (error) {
      const refused = error as ApiError;
      if (!refused.isPassing || !goesOn()) throw error;
      if (refused.isOffline) isOffline.value = true;
      await pause(Math.min(500 * 2 ** tries, 5_000));
    }
  }
}
