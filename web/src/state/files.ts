// Files and pictures for the next question: sent to the session as soon as they are chosen, so that the question itself is quick.
import { ref } from "vue";
import { type ApiError, call } from "../api/client";
import type { Attachment } from "../api/types";
import { path } from "./sessions";
import { newId } from "./stored";

export interface Chosen {
  n: string;
  name: string;
  bytes: number;
  sent: Attachment | null;
  problem: string;
}

const MOST = 20;
export const files = ref<Chosen[]>([]);

/** Each is sent; what is refused says why. */
export async function add(session: string, picked: Iterable<File>): Promise<void> {
  for (const file of [...picked].slice(0, MOST - files.value.length)) {
    files.value.push({ n: newId(), name: file.name, bytes: file.size, sent: null, problem: "" });
    const chosen = files.value.at(-1) as Chosen;
    const form = new FormData();
    form.append("file", file, file.name);
    try {
      const found = await call<{ data: Attachment[] }>(`${path(session)}/attachments`, { method: "POST", form });
      chosen.sent = found.data[0] ?? null;
    } catch (error) {
      chosen.problem = (error as ApiError).message;
    }
  }
}

export function remove(n: string): void {
  files.value = files.value.filter((one) => one.n !== n);
}
