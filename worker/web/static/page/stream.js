// One job's events, each exactly once, over as many connections as it takes.
//
// A connection that breaks, or is silent for longer than pings are apart, is replaced by one that asks for what comes
// behind the last event that was seen (`Last-Event-ID`). The server numbers them without gaps, and a number that was
// seen is passed over: so nothing is lost and nothing comes twice.

import { Refused, request } from "./api.js";
import { EventParser } from "./sse.js";

const FIRST_WAIT_MS = 250;
const LONGEST_WAIT_MS = 5000;
const SILENCE_MS = 60000; // a server may be told to ping every 50 s

// Yields { id, data } up to the terminal event. Whoever takes them reads what is in them: an event that cannot be read
// would not be better over another connection.
//
// onConnection: called with "open", and with "lost" when a connection has broken and another will be tried.
// Throws Refused if the server knows the job no longer or wants a key; AbortError when `signal` says so.
export async function* jobEvents(jobId, { lastId = -1, signal, onConnection = () => {} }) {
  for (let waitMs = FIRST_WAIT_MS; ; waitMs = Math.min(2 * waitMs, LONGEST_WAIT_MS)) {
    try {
      for await (const { id, data } of connection(jobId, lastId, signal, () => onConnection("open"))) {
        if (data === "[DONE]") return;
        if (id <= lastId) continue;
        waitMs = FIRST_WAIT_MS;
        lastId = id;
        yield { id, data };
      }
    } catch (error) {
      if (signal.aborted || (error instanceof Refused && !error.isPassing)) throw error;
      if (error.retryAfterS) waitMs = Math.max(waitMs, 1000 * error.retryAfterS);
    }
    onConnection("lost");
    await pause(waitMs, signal);
  }
}

async function* connection(jobId, lastId, signal, onOpen) {
  const silence = new AbortController();
  const parser = new EventParser();
  const decoder = new TextDecoder();
  let timer = null;
  const heard = () => {
    clearTimeout(timer);
    timer = setTimeout(() => silence.abort(), SILENCE_MS);
  };
  try {
    heard();
    const response = await request(`v1/jobs/${jobId}/stream`, {
      headers: lastId >= 0 ? { "Last-Event-ID": String(lastId) } : {},
      signal: AbortSignal.any([signal, silence.signal]),
    });
    onOpen();
    const reader = response.body.getReader();
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      heard();
      yield* parser.push(decoder.decode(value, { stream: true }));
    }
  } finally {
    clearTimeout(timer);
    silence.abort(); // who stops reading leaves
  }
}

// Shorter when the browser says that the network is back.
export function pause(ms, signal) {
  return new Promise((resolve, reject) => {
    const stop = new AbortController();
    const end = (finish) => () => { clearTimeout(timer); stop.abort(); finish(); };
    const timer = setTimeout(end(resolve), ms);
    addEventListener("online", end(resolve), { signal: stop.signal });
    signal?.addEventListener("abort", end(() => reject(signal.reason)), { signal: stop.signal });
  });
}
