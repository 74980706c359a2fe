// How one turn of the conversation is shown: the question, which can be edited, and the answer as it grows.

import { DONE, FAILED, RUNNING, STOPPED } from "./conversation.js";
import { isSent, make, setText } from "./dom.js";
import { MarkdownView, codeBlock, copyText } from "./markdown.js";

export class TurnView {
  #frame = null;
  #status = "";

  // onEdit(text): the question is another now. onRetry(): another answer is wanted. onResults(results): this is what the
  // tools have said.
  constructor(turn, { onEdit, onRetry, onResults }) {
    this.turn = turn;
    this.onEdit = onEdit;
    this.onRetry = onRetry;
    this.onResults = onResults;
    this.question = make("div", { class: "question" });
    // A screen reader reads the answer when it is whole: while it is busy it would be read from its beginning each time.
    this.body = make("div", { class: "answer-text", dir: "auto" });
    this.markdown = new MarkdownView(this.body);
    this.thought = make("p");
    this.reasoningTitle = make("summary");
    this.reasoning = make("details", { class: "reasoning" }, this.reasoningTitle, this.thought);
    this.calls = make("div", { class: "calls" });
    this.results = make("form", { class: "results", hidden: true });
    this.statusLine = make("p", { class: "status", role: "status" });
    this.error = make("p", { class: "error", role: "alert", hidden: true });
    this.foot = make("div", { class: "foot" });
    this.answer = make("article", { class: "answer", "aria-label": "Answer" },
      make("h2", { class: "unseen" }, "Answer"), // what models have as headings stands under it
      this.reasoning, this.body, this.calls, this.results, this.statusLine, this.error, this.foot);
    this.element = make("div", { class: "turn" }, this.question, this.answer);
    this.#showQuestion();
    this.draw();
  }

  // Say what is going on; null: as before. Draws with the next frame, however often it is called.
  update(status) {
    this.#status = status ?? this.#status;
    this.#frame ??= requestAnimationFrame(() => {
      this.#frame = null;
      this.draw();
    });
  }

  draw() {
    const { answer } = this.turn;
    const isRunning = answer.state === RUNNING;
    this.markdown.text = answer.text;
    this.#showReasoning(isRunning);
    this.#showCalls(isRunning);
    if (answer.state === DONE && answer.calls?.length && answer.calls.every(({ isWhole }) => isWhole)) this.#askForResults();
    this.answer.setAttribute("aria-busy", isRunning);
    this.answer.classList.toggle("writing", isRunning && answer.text !== "");
    setText(this.statusLine, isRunning ? this.#status || (hasBegun(answer) ? "" : "Waiting…") : "");
    this.error.hidden = answer.state !== FAILED;
    setText(this.error, answer.error?.message ?? "");
    const foot = isRunning ? "" : facts(answer);
    if (this.foot.dataset.facts !== foot || isRunning !== !this.foot.firstChild) this.#showFoot(foot, isRunning);
    this.onDraw?.();
  }

  #showReasoning(isRunning) {
    const { reasoning, text, calls } = this.turn.answer;
    this.reasoning.hidden = !reasoning;
    setText(this.thought, reasoning ?? "");
    setText(this.reasoningTitle, isRunning && !text && !calls?.length ? "Reasoning…" : "Reasoning");
  }

  // A call that is not complete when the answer is over will never be.
  #showCalls(isRunning) {
    const calls = this.turn.answer.calls ?? [];
    calls.forEach((call, i) => {
      const title = `Calls ${call.name}${call.isWhole || isRunning ? "" : " (not complete)"}`;
      const source = JSON.stringify([title, call]);
      if (this.calls.children[i]?.dataset.source === source) return;
      const block = codeBlock(call.isWhole ? indented(call.arguments) : call.arguments, title);
      block.dataset.source = source;
      if (this.calls.children[i]) this.calls.children[i].replaceWith(block);
      else this.calls.append(block);
    });
  }

  // Nothing is run here: whoever reads this is the tools.
  #askForResults() {
    if (!this.results.hidden) return;
    this.results.hidden = false;
    const { calls } = this.turn.answer;
    const fields = calls.map(({ name }, i) => {
      const title = calls.length > 1 ? `Result ${i + 1}: ${name}` : `Result of ${name}`;
      return make("textarea", { rows: "1", dir: "auto", required: true, "aria-label": title, placeholder: title });
    });
    this.results.append(...fields, make("div", { class: "row" }, make("button", { type: "submit" }, "Send results")));
    this.results.onsubmit = (event) => {
      event.preventDefault();
      this.onResults(calls.map(({ id, name }, i) => ({ id, name, text: fields[i].value })));
    };
  }

  #showFoot(text, isRunning) {
    this.foot.dataset.facts = text;
    if (isRunning) {
      this.foot.replaceChildren();
      return;
    }
    const copy = make("button", { type: "button" }, "Copy");
    copy.onclick = async () => {
      copy.textContent = (await copyText(this.turn.answer.text)) ? "Copied" : "Cannot copy";
      setTimeout(() => { copy.textContent = "Copy"; }, 2000);
    };
    const retry = make("button", { type: "button", class: "retry", onclick: () => this.onRetry() }, "Retry");
    const buttons = make("span", {}, this.turn.answer.text ? copy : null, retry); // on a narrow screen they wrap together
    this.foot.replaceChildren(make("span", { class: "facts" }, text), buttons);
  }

  #showQuestion() {
    if (this.turn.results) {
      const results = this.turn.results.map(({ name, text }) => make("p", {}, make("strong", {}, name), ` ${text}`));
      this.question.replaceChildren(make("article", { class: "bubble", "aria-label": "Results of tools" }, results));
      return;
    }
    const edit = make("button", { type: "button", "aria-label": "Edit the question" }, "Edit");
    edit.onclick = () => this.#editQuestion();
    this.question.replaceChildren(
      make("article", { class: "bubble", "aria-label": "Question" }, this.turn.question),
      make("div", { class: "tools" }, edit),
    );
  }

  #editQuestion() {
    const field = make("textarea", { rows: "3", dir: "auto", "aria-label": "Question", "aria-describedby": "edit-about" });
    field.value = this.turn.question;
    const close = () => {
      this.#showQuestion();
      this.question.querySelector("button").focus();
    };
    const form = make("form", { class: "edit" }, field,
      make("p", { id: "edit-about" }, "The answer and all that follows it are replaced."),
      make("div", { class: "row" },
        make("button", { type: "submit", class: "primary" }, "Ask again"),
        make("button", { type: "button", onclick: close }, "Cancel")));
    form.onsubmit = (event) => {
      event.preventDefault();
      if (field.value.trim()) this.onEdit(field.value.trim());
    };
    form.onkeydown = (event) => {
      if (event.key === "Escape") close();
      if (event.target === field && isSent(event)) {
        event.preventDefault();
        form.requestSubmit();
      }
    };
    this.question.replaceChildren(form);
    field.focus();
  }
}

const hasBegun = ({ text, reasoning, calls }) => Boolean(text || reasoning || calls?.length);

function indented(json) {
  try {
    return JSON.stringify(JSON.parse(json), null, 2);
  } catch {
    return json;
  }
}

// What was measured, in words.
function facts(answer) {
  const { state, stopReason, tokens, metrics } = answer;
  const isMeasured = (value) => Number.isFinite(value) && value > 0;
  const parts = [];
  if (state === STOPPED) parts.push("stopped");
  if (state === DONE && !hasBegun(answer)) parts.push("an empty answer");
  if (state === DONE && stopReason === "MAX_TOKENS") parts.push("cut off at the limit of tokens");
  if (tokens) parts.push(`${tokens} token${tokens === 1 ? "" : "s"}`);
  if (isMeasured(metrics?.tokensPerS)) parts.push(`${number(metrics.tokensPerS)} tokens/s`);
  if (isMeasured(metrics?.ttftMs)) parts.push(`first after ${duration(metrics.ttftMs)}`);
  return parts.join(" · ");
}

function number(value) {
  return value < 100 ? value.toFixed(1) : Math.round(value).toString();
}

function duration(ms) {
  return ms < 1000 ? `${Math.round(ms)} ms` : `${(ms / 1000).toFixed(1)} s`;
}
