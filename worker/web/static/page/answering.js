// How an answer comes to be: a job is made, its events are read to the end, or it is stopped. Changes an answer of the
// conversation and says after each change that there was one. Knows nothing of what is shown.

import { Refused, cancelJob, createJob } from "./api.js";
import { DONE, RUNNING, STOPPED, fail, newName } from "./conversation.js";
import { jobEvents, pause } from "./stream.js";

const TRIES = 4;

// What to do about an ending that is nobody's wish.
const ADVICE = {
  QUEUE_TIMEOUT: "The server is busy. Try again in a moment.",
  FIRST_TOKEN_TIMEOUT: "The server is slow at the moment. Try again, or ask something shorter.",
  STALLED: "The server got stuck and is being replaced. Try again in a moment.",
  TIMEOUT: "Ask for a shorter answer (Max tokens), or try again.",
  VRAM_OOM: "The server has no memory left for this. Ask something shorter, or try again.",
  SHUTTING_DOWN: "The server is being restarted. Try again in a moment.",
  ENGINE_DEAD: "Try again in a moment.",
  UNKNOWN_JOB: "The server was restarted or the answer has expired. Try again.",
};

export class Answering {
  #stopping = new AbortController(); // of waits; that it was asked for, the answer knows
  #leaving = new AbortController();

  // answer: of the conversation. onChange: called with what is going on, in words, or "".
  constructor(answer, onChange) {
    this.answer = answer;
    this.onChange = onChange;
  }

  // Make the job, of `body` if there is none yet, and read it to its end. Throws Refused with status 401 if a key is needed;
  // then call it again.
  async run(body) {
    try {
      this.answer.jobId ??= await this.#create(body);
      if (this.answer.jobId) await this.#read();
      else this.answer.state = STOPPED;
    } catch (error) {
      if (this.#leaving.signal.aborted) return;
      if (error instanceof Refused && error.status === 401) throw error;
      if (error instanceof Refused) {
        this.#fail(error.code, words(error));
      } else {
        this.#fail("", `This page cannot read what the server sent (${error.message}). Try again.`);
        if (this.answer.jobId) this.#cancel(); // nobody reads the rest
      }
    }
  }

  // End the work on the server. The end comes as an event, as every other.
  stop() {
    this.answer.isStopAsked = true;
    this.#stopping.abort();
    this.onChange("Stopping…");
    if (this.answer.jobId) this.#cancel();
  }

  // Stop reading and change nothing any more: the conversation has been cleared.
  leave() {
    if (this.answer.jobId && this.answer.state === RUNNING) cancelJob(this.answer.jobId).catch(() => {});
    this.#leaving.abort();
  }

  // The request is sent again under the same name, after a reload too, so that an answer that was lost on its way does not
  // make two jobs. Returns its id; null: it was to stop while the model was loading, and there is none.
  async #create(body) {
    this.answer.name ??= newName(); // an older page gave none
    this.onChange("Sending…");
    for (let tries = 1; ; tries++) {
      try {
        return await createJob(body, this.answer.name, this.#leaving.signal);
      } catch (error) {
        if (this.#leaving.signal.aborted) throw error;
        if (error instanceof Refused && error.code === "LOADING") {
          tries = 0; // it can be reached, and says itself when it will not be ready
          if (!this.answer.isStopAsked) await this.#wait("The model is still loading; this is sent when it is ready…", 1000 * (error.retryAfterS ?? 2));
          if (this.answer.isStopAsked) return null;
          continue;
        }
        if (error instanceof Refused && error.code === "KEY_REUSED" && tries < TRIES) {
          this.answer.name = newName(); // it is another request: the settings have changed since
          this.onChange("Sending…");
          continue;
        }
        if (error instanceof Refused) throw error;
        if (tries === TRIES || this.answer.isStopAsked) throw new Refused(0, "", "The server cannot be reached. Check the connection, then try again.");
        await this.#wait("The server does not answer; trying again…", 500 * 2 ** tries);
      }
    }
  }

  // Stop ends it.
  async #wait(status, ms) {
    this.onChange(status);
    await pause(ms, AbortSignal.any([this.#leaving.signal, this.#stopping.signal])).catch(() => {});
  }

  async #read() {
    const { answer } = this;
    const onConnection = (state) => {
      if (state === "lost") this.onChange("Connection lost; resuming…");
      else if (this.answer.isStopAsked) this.#cancel(); // there was no job yet, or the first try was lost with the connection
      else this.onChange("");
    };
    const options = { lastId: answer.lastId, signal: this.#leaving.signal, onConnection };
    for await (const { id, data } of jobEvents(answer.jobId, options)) {
      answer.lastId = id;
      this.onChange(this.#take(JSON.parse(data)));
    }
  }

  // Put an event into the answer. Returns what is going on, in words; null: as before.
  #take(event) {
    const { answer } = this;
    switch (event.type) {
      case "narration":
        return this.answer.isStopAsked ? null : event.human;
      case "token":
        for (const part of event.parts ?? [{ type: "text", text: event.t }]) this.#add(part);
        answer.tokens = event.i + (event.n ?? 1);
        return this.answer.isStopAsked ? null : "";
      case "metrics":
        answer.metrics = { tokensPerS: event.tokens_per_sec, ttftMs: event.ttft_ms, queueMs: event.queue_ms };
        return null;
      case "end":
        event.parts?.forEach((part) => this.#add(part));
        answer.state = event.stop_reason === "CANCELLED" ? STOPPED : DONE;
        answer.stopReason = event.stop_reason;
        answer.tokens = event.tokens_out;
        return "";
      case "error":
        event.parts?.forEach((part) => this.#add(part));
        this.#fail(event.code, advised(event.code, event.message));
        return "";
      default:
        return null;
    }
  }

  #add(part) {
    const { answer } = this;
    if (part.type === "text") answer.text += part.text;
    else if (part.type === "reasoning") answer.reasoning += part.text;
    else if (part.type === "call") answer.calls.push({ id: part.id, name: part.name, arguments: "", isWhole: false });
    else if (part.type === "arguments") answer.calls[part.index].arguments += part.text;
    else if (part.type === "call_end") answer.calls[part.index].isWhole = true;
  }

  #fail(code, message) {
    fail(this.answer, code, message);
    this.onChange("");
  }

  // Asked again if it was lost: the events may come over a connection that goes on.
  async #cancel() {
    for (let tries = 1; ; tries++) {
      try {
        await cancelJob(this.answer.jobId);
        return;
      } catch (error) {
        if (tries === TRIES || (error instanceof Refused && !error.isPassing)) return;
      }
      await pause(500 * 2 ** tries);
    }
  }
}

function words(refused) {
  if (refused.code === "UNKNOWN_JOB" || refused.status === 404) return ADVICE.UNKNOWN_JOB;
  const wait = refused.retryAfterS ? ` Try again in ${refused.retryAfterS} s.` : "";
  return sentence(refused.message) + wait;
}

function advised(code, message) {
  return `${sentence(message)} ${ADVICE[code] ?? "Try again."}`;
}

function sentence(text) {
  const whole = text.charAt(0).toUpperCase() + text.slice(1);
  return /[.!?]$/.test(whole) ? whole : `${whole}.`;
}
