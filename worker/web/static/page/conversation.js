// The conversation: turns of a question and its answer, kept over a reload. Knows nothing of what is shown.
//
// A running answer keeps the name of its request, then its job and the number of the last event that is in its text: after
// a reload it goes on there. `save` is called often and writes now and then; a page that goes away writes what it has
// not yet.
//
// All tabs of a browser have one conversation. What one writes the others take over, so whoever writes has seen the last.

const NAME = "endstop.conversation";
const SAVE_MS = 500;

export const RUNNING = "running";
export const DONE = "done"; // the model has ended it, or a limit has
export const STOPPED = "stopped"; // by whoever reads it
export const FAILED = "failed";

export class Conversation {
  #timer = null;
  #isKept = true; // as far as was tried

  // onElsewhere(): another tab has written, and `takeOver` may be called. onWritten(isKept): what is here is kept, or
  // could not be.
  constructor(onElsewhere, onWritten) {
    this.onWritten = onWritten;
    this.turns = read() ?? [];
    addEventListener("pagehide", () => {
      if (this.#timer !== null) this.#write(); // else another tab may have written since, or cleared it
    });
    addEventListener("storage", ({ key }) => {
      if (key === NAME || key === null) onElsewhere(); // null: everything was cleared
    });
  }

  // Have the turns that another tab has written; those that are the same stay the same objects. Not if the turn of the
  // `running` answer is the last of them: that one grows here, and what the other tab has of it is older, unless it is the
  // whole. Not either if what is here is kept nowhere else. Returns whether they were taken.
  takeOver(running) {
    if (!this.#isKept) return false;
    const found = read() ?? [];
    const place = this.turns.findIndex(({ answer }) => answer === running);
    if (place >= 0 && place === found.length - 1 && isSameAndRuns(found[place], running)) return false;
    let same = 0;
    while (same < found.length && JSON.stringify(found[same]) === JSON.stringify(this.turns[same])) same++;
    this.turns = [...this.turns.slice(0, same), ...found.slice(same)];
    return true;
  }

  // A turn whose answer is to come. In the place of a question stand `results`, if it is tools that were asked something:
  // [{ id, name, text }], for each call of the answer before.
  ask(question, results = null) {
    this.turns.push({ question, results, answer: newAnswer() });
    this.#write(); // at once: another tab that writes meanwhile would take it for gone
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
  // chats want turns in turn. So are calls that got no result.
  messages(system) {
    const found = system ? [{ role: "system", content: system }] : [];
    this.turns.forEach(({ question, results, answer }, i) => {
      const isLast = i === this.turns.length - 1;
      const isCalling = !isLast && this.turns[i + 1].results;
      if (results) found.push(...results.map(({ id, text }) => ({ role: "tool", tool_call_id: id, content: text })));
      else if (answer.text || isCalling || isLast) found.push({ role: "user", content: question });
      if (isCalling) found.push({ role: "assistant", content: answer.text || null, tool_calls: answer.calls.map(called) });
      else if (!isLast && answer.text) found.push({ role: "assistant", content: answer.text });
    });
    return found;
  }

  save() {
    this.#timer ??= setTimeout(() => this.#write(), SAVE_MS);
  }

  #write() {
    clearTimeout(this.#timer);
    this.#timer = null;
    try {
      localStorage.setItem(NAME, JSON.stringify(this.turns));
      this.#isKept = true;
    } catch {
      this.#isKept = false; // full, or a browser that keeps nothing: the page works on without
    }
    this.onWritten(this.#isKept);
  }
}

export function fail(answer, code, message) {
  answer.state = FAILED;
  answer.error = { code, message };
}

// A name for a request that may be sent again. `crypto.randomUUID` is there for https only.
export function newName() {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

function newAnswer() {
  return {
    name: newName(), state: RUNNING, isStopAsked: false, text: "", reasoning: "", calls: [], jobId: null, lastId: -1,
    error: null, stopReason: null, metrics: null, tokens: 0,
  };
}

// Whether what another tab has written is this answer, which may have got its job since, and has not ended there. To ask for
// it or to read it may have failed there, and not here.
function isSameAndRuns({ answer: found }, { name, jobId }) {
  return found.name === name && [null, jobId].includes(found.jobId) && [RUNNING, FAILED].includes(found.state);
}

const called = ({ id, name, arguments: text }) => ({ id, type: "function", function: { name, arguments: text } });

function read() {
  try {
    const turns = JSON.parse(localStorage.getItem(NAME));
    const areNamed = (list) => Array.isArray(list) && list.every((one) => typeof one.name === "string");
    const isWhole = ({ question, results, answer }) => [question, answer.text].every((text) => typeof text === "string")
      && areNamed(results ?? []) && areNamed(answer.calls ?? []);
    return Array.isArray(turns) && turns.every(isWhole) ? turns : null;
  } catch {
    return null; // by another version, or broken
  }
}
