// The server's routes, the API key, and what a refusal means in words. Knows nothing of what is shown.

const KEY = "endstop.key";

// What the server has said no to. `message` is for people.
export class Refused extends Error {
  constructor(status, code, message, retryAfterS = null) {
    super(message);
    Object.assign(this, { status, code, retryAfterS });
  }

  // Whether the same request may be accepted later.
  get isPassing() {
    return this.status === 429 || this.status >= 500;
  }
}

// The key lives as long as the tab: whoever opens this browser tomorrow does not have it. In a browser that keeps nothing,
// as long as the page.
let given = null;
export const key = {
  get() {
    try { given ??= sessionStorage.getItem(KEY); } catch { /* forbidden */ }
    return given ?? "";
  },
  set(value) {
    given = value;
    try { (value ? sessionStorage.setItem(KEY, value) : sessionStorage.removeItem(KEY)); } catch { /* forbidden */ }
  },
};

// Throws Refused for every answer that is no success, and what `fetch` throws if there is none.
export async function request(path, { method = "GET", body, headers = {}, signal } = {}) {
  const sent = { ...headers };
  if (key.get()) sent.Authorization = `Bearer ${key.get()}`;
  if (body !== undefined) sent["Content-Type"] = "application/json";
  const response = await fetch(path, {
    method, headers: sent, signal, cache: "no-store", body: body === undefined ? undefined : JSON.stringify(body),
  });
  if (!response.ok) throw await refusal(response);
  return response;
}

async function refusal(response) {
  const { status } = response;
  const retryAfter = Number(response.headers.get("Retry-After"));
  const found = await response.json().catch(() => ({}));
  const code = found.error?.code ?? (found.errors ? "INVALID_REQUEST" : found.state ?? "");
  // What the server says of a key that is missing is for those who write programs.
  const message = status === 401 && !key.get() ? "This server asks for an API key." : found.errors?.map(({ field, message }) => `${field}: ${message}`).join("\n")
    ?? found.error?.message ?? found.reason ?? `the server answered ${status}`;
  return new Refused(status, code, message, retryAfter || null);
}

// The same name makes no second job, but gets the first again.
export async function createJob(body, name, signal) {
  const response = await request("v1/jobs", { method: "POST", body, headers: { "Idempotency-Key": name }, signal });
  return (await response.json()).job_id;
}

export async function cancelJob(id) {
  await request(`v1/jobs/${id}`, { method: "DELETE" });
}

// Whether a request would be accepted now, as { state, model, reason }.
export async function readiness() {
  const response = await fetch("ready", { cache: "no-store" });
  return response.json();
}
