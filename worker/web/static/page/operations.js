// The operations view: how the server is doing, asked for every two seconds while somebody looks.

import { Refused, request } from "./api.js";
import { make } from "./dom.js";
import { askForKey } from "./keydialog.js";
import { SPAN_S, plot } from "./plot.js";

const EVERY_MS = 2000;

export class Operations {
  #isShown = false;
  #timer = null;

  constructor(element) {
    this.state = make("p", { class: "state", role: "status" }, "Asking the server…");
    this.tiles = make("dl", { class: "tiles" });
    this.plots = make("div", { class: "plots" });
    this.streams = rows("Live streams", ["State", "Age", "Prompt", "Tokens", "Last token", "Unread", "Job"], "Nothing runs.");
    this.outcomes = rows("Outcomes since the start", ["Outcome", "Code", "Requests"], "None yet.");
    this.ended = rows("Recent requests", ["Ended", "Outcome", "Prompt", "Tokens", "Queue", "First token", "Longest pause", "Total"], "None yet.");
    this.content = make("div", { class: "content", hidden: true }, this.tiles, this.plots,
      make("div", { class: "tables" }, this.streams.element, this.outcomes.element), this.ended.element);
    element.append(make("div", { class: "operations" }, make("h2", {}, "Operations"), this.state, this.content));
    document.addEventListener("visibilitychange", () => this.#look());
  }

  set isShown(value) {
    this.#isShown = value;
    this.#look();
  }

  // One timer at most; none while nobody looks.
  async #look() {
    clearTimeout(this.#timer);
    if (!this.#isShown || document.hidden) return;
    const wait = new Promise((resolve) => { this.#timer = setTimeout(resolve, EVERY_MS); });
    const timer = this.#timer;
    await this.#ask();
    await wait;
    if (timer === this.#timer) this.#look();
  }

  async #ask() {
    try {
      this.#show(await (await request("v1/operations", { signal: AbortSignal.timeout(5 * EVERY_MS) })).json());
      return;
    } catch (error) {
      const isRefused = error instanceof Refused;
      this.#say(isRefused ? error.message : "The server cannot be reached. Trying again…", "bad");
      this.content.classList.add("old");
      // Who does not want to give one is not asked every two seconds.
      if (isRefused && error.status === 401 && !(await askForKey(error.message))) this.#isShown = false;
    }
  }

  #say(text, kind) {
    if (this.state.textContent !== text) this.state.textContent = text;
    this.state.className = `state ${kind}`;
  }

  #show(found) {
    const isReady = found.state === "READY";
    this.#say(isReady ? `READY · ${found.model} on ${found.device} · up ${time(found.uptime_s)}` : `${found.state}: ${found.reason}`, isReady ? "good" : found.state === "LOADING" ? "" : "bad");
    this.content.hidden = false;
    this.content.classList.remove("old");
    this.#showTiles(found);
    this.#showPlots(found);
    this.streams.show(found.streams.map((one) => [
      one.state.toLowerCase(), time(one.age_s), one.prompt_tokens, one.tokens,
      one.quiet_s === null ? "–" : `${time(one.quiet_s)} ago`, one.unread_events,
      one.job_id ? make("code", { title: one.job_id }, one.job_id.slice(0, 8)) : "somebody else's",
    ]));
    this.outcomes.show([...found.outcomes].sort((a, b) => b.count - a.count).map(({ outcome, code, count }) => [mark(outcome), code, count]));
    this.ended.show([...found.ended].reverse().slice(0, 50).map((one) => [
      `${time(one.ended_ago_s)} ago`, [mark(one.outcome), ` ${one.code}`], one.prompt_tokens, one.tokens,
      ms(one.queue_ms), ms(one.ttft_ms), ms(one.longest_gap_ms), ms(one.total_ms),
    ]));
  }

  #showTiles({ slots, queue, cache, prefix, history }) {
    const share = prefix.looked_for ? prefix.found / prefix.looked_for : 0;
    const tiles = [
      ["Slots", `${slots.used} of ${slots.total}`, slots.used / slots.total],
      ["Queue", `${queue.used} of ${queue.total}`, queue.total ? queue.used / queue.total : 0],
      ["Tokens/s", number(history.at(-1)?.tokens_per_s ?? 0), null],
      ["KV cache", percent(cache.used), cache.used],
      ["Prefix cache holds", percent(cache.remembered), cache.remembered],
      ["Prompt tokens reused", percent(share), share],
    ];
    this.tiles.replaceChildren(...tiles.map(([name, value, part]) => make("div", {},
      make("dt", {}, name),
      make("dd", {}, value, part !== null && make("meter", { min: 0, max: 1, value: part, "aria-label": name })))));
  }

  #showPlots({ history, ended, slots }) {
    const line = (name, field) => ({ name, kind: "line", points: history.map((one) => ({ ago: one.ago_s, value: one[field] })) });
    const dots = (name, field) => ({
      name, kind: "dots",
      points: ended.filter((one) => one[field] !== null).map((one) => ({ ago: one.ended_ago_s, value: one[field] })),
    });
    const plots = [
      { title: "Tokens per second", series: [line("tokens/s", "tokens_per_s")], format: number },
      { title: "Running and waiting", series: [line("running", "running"), line("waiting", "waiting")], format: count },
      { title: "KV cache in use", series: [line("in use", "cache_used")], format: percent, most: 1 },
      { title: "Time to first token", series: [dots("first token", "ttft_ms")], format: ms },
      { title: "Longest pause between tokens", series: [dots("longest pause", "longest_gap_ms")], format: ms },
      { title: "Whole requests", series: [dots("whole request", "total_ms")], format: ms },
    ];
    this.plots.replaceChildren(...plots.map((one) => make("figure", {},
      make("figcaption", {}, one.title, one.series[0].kind === "dots"
        ? quantiles(one.series[0].points, one.format)
        : one.series.length > 1 && one.series.map(({ name }, i) => make("span", { class: `key-${i}` }, name))),
      plot(one))));
  }
}

// A table with a title, whose rows are replaced.
function rows(title, columns, empty) {
  const body = make("tbody");
  const table = make("table", {}, make("thead", {}, make("tr", {}, columns.map((name) => make("th", { scope: "col" }, name)))), body);
  const none = make("p", { class: "none" }, empty);
  const scroll = make("div", { class: "table", tabindex: "0", role: "region", "aria-label": title }, table);
  return {
    element: make("section", {}, make("h3", {}, title), scroll, none),
    show(lines) {
      scroll.hidden = !lines.length;
      none.hidden = lines.length > 0;
      body.replaceChildren(...lines.map((cells) => make("tr", {}, cells.map((cell) => make("td", {}, cell)))));
    },
  };
}

// A word and a colour, so that no one needs to see the colour.
function mark(outcome) {
  return make("span", { class: `mark ${outcome}` }, outcome);
}

function quantiles(points, format) {
  const values = points.filter(({ ago }) => ago <= SPAN_S).map(({ value }) => value).sort((a, b) => a - b);
  const at = (share) => format(values[Math.min(values.length - 1, Math.floor(share * values.length))]);
  return values.length ? make("span", { class: "quantiles" }, `half within ${at(0.5)}, 95% within ${at(0.95)}`) : "";
}

// ---- quantities in words

function count(value) {
  return Number.isInteger(value) ? number(value) : "";
}

function number(value) {
  if (value >= 10000) return `${Math.round(value / 1000)}k`;
  return value >= 100 || Number.isInteger(value) ? Math.round(value).toString() : value.toFixed(1);
}

function percent(share) {
  return `${share > 0 && share < 0.1 ? (100 * share).toFixed(1) : Math.round(100 * share)}%`;
}

function ms(value) {
  if (value === null) return "–";
  if (value >= 9950) return `${Math.round(value / 1000)} s`;
  if (value >= 995) return `${(value / 1000).toFixed(1)} s`;
  return `${value < 10 && !Number.isInteger(value) ? value.toFixed(1) : Math.round(value)} ms`;
}

function time(s) {
  if (s < 60) return `${s < 10 ? s.toFixed(1) : Math.round(s)} s`;
  if (s < 3600) return `${Math.floor(s / 60)} min`;
  return s < 172800 ? `${Math.floor(s / 3600)} h` : `${Math.floor(s / 86400)} days`;
}
