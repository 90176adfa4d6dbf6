// The operators' HTTP interface, beside this page: addresses are relative, so any path prefix of a proxy holds.

const KEPT = "nowserving-operator-token";

/** An error with a message for the operator. status 0: the server did not answer. */
export class Trouble extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

export const token = {
  get: () => sessionStorage.getItem(KEPT) || "",
  keep: (value) => sessionStorage.setItem(KEPT, value),
  forget: () => sessionStorage.removeItem(KEPT),
};

/** The answer's JSON. body: makes it a POST. Throws Trouble. */
export async function call(path, body) {
  const headers = { Authorization: `Bearer ${token.get()}` };
  const options = { headers, cache: "no-store", credentials: "omit", signal: AbortSignal.timeout(20000) };
  if (body !== undefined) {
    headers["Content-Type"] = "application/json";
    Object.assign(options, { method: "POST", body: JSON.stringify(body) });
  }
  let answer;
  try {
    answer = await fetch(path, options);
  } catch {
    throw new Trouble("The server does not answer. This page tries again by itself.", 0);
  }
  const result = await answer.json().catch(() => null);
  if (answer.ok) return result;
  throw new Trouble(result?.error?.message || `The server answered ${answer.status}.`, answer.status);
}
