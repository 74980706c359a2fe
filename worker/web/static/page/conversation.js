// The conversation: turns of a question and its answer, kept over a reload. Knows nothing of what is shown.
//
// A running answer keeps its job and the number of the last event that is in its text: after a reload the stream goes
// on there. `save` is called often and writes now and then; a page that goes away writes at once.

const NAME = "endstop.conversation";
const SAVE_MS = 500;

export const RUNNING = "running";
export const DONE = "done"; // the model has ended it, or a limit has
export const STOPPED = "stopped"; // by whoever reads it
export const FAILED = "failed";

export class Conversation {
  #timer = null;

  constructor() {
    this.turns = read() ?? [];
    addEventListener("pagehide", () => this.#write());
  }

  // A turn whose answer is to come.
  ask(question) {
    this.turns.push({ question, answer: newAnswer() });
    this.save();
    return this.turns.at(-1);
  }

  // Forget a turn and all that follow it; their place is behind what comes before.
  cut(turn) {
    this.turns.splice(this.turns.indexOf(turn));
    this.save();
  }

  clear() {
    this.turns = [];
    this.#write();
  }

  // What the model is to read for the answer of the last turn. A question that got none is left out: templates of
  // chats want turns in turn.
  messages(system) {
    const before = this.turns.slice(0, -1).filter(({ answer }) => answer.text).flatMap(({ question, answer }) => [
      { role: "user", content: question },
      { role: "assistant", content: answer.text },
    ]);
    const start = system ? [{ role: "system", content: system }] : [];
    return [...start, ...before, { role: "user", content: this.turns.at(-1).question }];
  }

  save() {
    this.#timer ??= setTimeout(() => this.#write(), SAVE_MS);
  }

  #write() {
    clearTimeout(this.#timer);
    this.#timer = null;
    try {
      localStorage.setItem(NAME, JSON.stringify(this.turns));
    } catch { /* full, or a browser that keeps nothing: the page works on without */ }
  }
}

export function newAnswer() {
  return {
    state: RUNNING, text: "", reasoning: "", calls: [], jobId: null, lastId: -1, error: null, stopReason: null, metrics: null, tokens: 0,
  };
}

function read() {
  try {
    const turns = JSON.parse(localStorage.getItem(NAME));
    const isWhole = (turn) => typeof turn.question === "string" && typeof turn.answer.text === "string";
    return Array.isArray(turns) && turns.every(isWhole) ? turns : null;
  } catch {
    return null; // by another version, or broken
  }
}
