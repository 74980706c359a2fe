// The chat: what a person does, and what it does to the conversation. One answer runs at a time.

import { Refused } from "./api.js";
import { Answering } from "./answering.js";
import { Conversation, RUNNING, fail } from "./conversation.js";
import { byId, isSent, setText } from "./dom.js";
import { askForKey } from "./keydialog.js";
import { areOptionsValid, fields, keepOptions, systemPrompt } from "./options.js";
import { TurnView } from "./turn.js";

const AT_END_PX = 80;

export class Chat {
  #conversation = new Conversation(() => this.#takeOver(), (isKept) => {
    setText(byId("lost"), isKept ? "" : "This browser has no room to keep the conversation, or keeps nothing: it ends with this page.");
  });
  #views = new Map(); // by turn
  #running = null;
  #isFollowing = true;

  constructor() {
    keepOptions();
    const question = byId("question");
    byId("ask").addEventListener("submit", (event) => {
      event.preventDefault();
      this.#send();
    });
    question.addEventListener("keydown", (event) => {
      if (isSent(event)) {
        event.preventDefault();
        this.#send();
      }
    });
    question.addEventListener("input", () => grow(question));
    byId("stop").addEventListener("click", () => this.#running?.stop());
    byId("clear").addEventListener("click", () => this.#clear());
    byId("change-key").addEventListener("click", () => askForKey());
    const log = byId("log");
    log.addEventListener("scroll", () => {
      this.#isFollowing = log.scrollHeight - log.scrollTop - log.clientHeight < AT_END_PX;
    });
    for (const turn of this.#conversation.turns) this.#show(turn);
    // Out of the browser's cache of pages: it was still while other tabs went on.
    addEventListener("pageshow", ({ persisted }) => {
      if (!persisted) return;
      this.#takeOver();
      this.#resume();
    });
    this.#resume();
    this.#showState();
  }

  // Read an answer that runs and that nobody reads here.
  #resume() {
    const last = this.#conversation.turns.at(-1);
    if (this.#running || last?.answer.state !== RUNNING) return;
    if (last.answer.jobId || areOptionsValid()) {
      this.#answer(last);
    } else {
      fail(last.answer, "", "The settings have to be corrected first. Then try again.");
      this.#conversation.save();
      this.#views.get(last).update("");
    }
  }

  #send() {
    const question = byId("question").value.trim();
    if (this.#running || !question || !areOptionsValid()) return;
    const last = this.#conversation.turns.at(-1);
    if (last?.answer.state === RUNNING) { // in another tab, which may be gone
      this.#answer(last);
      return;
    }
    byId("question").value = "";
    grow(byId("question"));
    this.#ask(question);
  }

  #ask(question, results) {
    const turn = this.#conversation.ask(question, results);
    this.#show(turn);
    this.#answer(turn);
    this.#scrollDown(true);
  }

  #askAgain(turn, question) {
    if (!areOptionsValid()) return;
    this.#running?.leave();
    const turns = this.#conversation.turns;
    for (const later of turns.slice(turns.indexOf(turn))) {
      this.#views.get(later).element.remove();
      this.#views.delete(later);
    }
    this.#conversation.cut(turn);
    this.#ask(question, turn.results);
    byId("question").focus();
  }

  async #answer(turn) {
    const view = this.#views.get(turn);
    const answering = new Answering(turn.answer, (status) => {
      this.#conversation.save();
      view.update(status);
    });
    this.#running = answering;
    this.#showState();
    const body = turn.answer.jobId ? null : { messages: this.#conversation.messages(systemPrompt()), narrate: true, ...fields() };
    for (;;) {
      try {
        await answering.run(body);
        break;
      } catch (error) {
        if (!(error instanceof Refused && error.status === 401)) throw error;
        view.update("Waiting for an API key…");
        if (await askForKey(error.message)) continue;
        fail(turn.answer, error.code, "The server wants an API key. Give it one in Settings, then try again.");
        break;
      }
    }
    this.#conversation.save();
    view.update("");
    if (this.#running === answering) this.#running = null;
    this.#showState();
  }

  #clear() {
    if (this.#conversation.turns.length && !confirm("Clear the conversation? It is kept nowhere else.")) return;
    this.#running?.leave();
    this.#running = null;
    this.#conversation.clear();
    for (const view of this.#views.values()) view.element.remove();
    this.#views.clear();
    this.#showState();
    byId("question").focus();
  }

  // Another tab has written. An answer that it has cleared or asked in another way is wanted no more.
  #takeOver() {
    if (!this.#conversation.takeOver(this.#running?.answer)) return;
    this.#running?.leave();
    this.#running = null;
    const { turns } = this.#conversation;
    for (const [turn, view] of this.#views) {
      if (turns.includes(turn)) continue;
      view.element.remove();
      this.#views.delete(turn);
    }
    for (const turn of turns) if (!this.#views.has(turn)) this.#show(turn);
    this.#showState();
    this.#scrollDown(false);
  }

  #show(turn) {
    const view = new TurnView(turn, {
      onEdit: (question) => this.#askAgain(turn, question),
      onRetry: () => this.#askAgain(turn, turn.question),
      onResults: (results) => {
        if (this.#running || !areOptionsValid()) return;
        this.#ask("", results);
        byId("question").focus();
      },
    });
    view.onDraw = () => this.#scrollDown(false);
    this.#views.set(turn, view);
    byId("log").append(view.element);
  }

  #showState() {
    const { turns } = this.#conversation;
    byId("welcome").hidden = turns.length > 0;
    byId("log").classList.toggle("running", this.#running !== null);
    const isStopFocused = document.activeElement === byId("stop");
    byId("send").hidden = this.#running !== null;
    byId("stop").hidden = this.#running === null;
    if (isStopFocused && byId("stop").hidden) byId("question").focus(); // a focus that vanishes starts at the top again
    for (const turn of turns) {
      this.#views.get(turn).element.classList.toggle("last", turn === turns.at(-1));
    }
  }

  // Follow the text, unless somebody has scrolled up to read.
  #scrollDown(isForced) {
    const log = byId("log");
    if (isForced || this.#isFollowing) log.scrollTop = log.scrollHeight;
  }
}

function grow(field) {
  field.style.height = "auto";
  field.style.height = `${Math.min(field.scrollHeight + 2, 200)}px`;
}
