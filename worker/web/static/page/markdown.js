// What models write, as elements: the common part of Markdown. Law: text becomes text nodes. Nothing of it is read as
// markup, no image is loaded, and a link goes to http, https or mail, or is no link.
//
// `MarkdownView` shows a text that grows: what stands before the last block, or the last item of a list, stays as it is,
// so that a selection in it lasts and a long answer costs little more per token than a short one. A text that cannot be
// read as Markdown is shown as it is: whatever a model writes, the page goes on.

import { make } from "./dom.js";

const FENCE = /^ {0,3}(`{3,}|~{3,})\s*([^`]*)$/;
const HEADING = /^ {0,3}(#{1,6})\s+(.*?)\s*#*$/;
const RULE = /^ {0,3}([-*_])( *\1){2,} *$/;
const QUOTE = /^ {0,3}> ?/;
const ITEM = /^( *)([-*+]|\d{1,9}[.)])\s+/;
const DELIMITERS = /^ *\|? *:?-+:? *(\| *:?-+:? *)*\|? *$/;

// How deep quotes and lists may stand in each other; what is deeper is text. A line of 1,255 "1. " fills a browser's stack.
const MAX_DEPTH = 50;

export class MarkdownView {
  #shown = [];
  #isPlain = false;

  constructor(element) {
    this.element = element;
  }

  set text(text) {
    if (!this.#isPlain) {
      try {
        this.#show(text);
        return;
      } catch { // the stack is full; a text that grows gets no better
        this.#isPlain = true;
        this.element.classList.add("plain");
      }
    }
    this.element.textContent = text;
  }

  #show(text) {
    show(this.element, this.#shown, blocks(text));
  }
}

// Have an element show what was found in its text. `shown` is what it shows: as much of it as is the same stays, and
// of a list that has grown so do its items.
function show(element, shown, found) {
  let same = 0;
  while (same < found.length && found[same].source === shown[same]?.source) same++;
  const grown = shown[same];
  if (grown?.list && grown.list === found[same]?.list) {
    grown.source = found[same].source;
    show(grown.element, grown.items, found[same].items);
    same++;
  }
  for (const block of shown.splice(same)) block.element.remove();
  for (const block of found.slice(same)) {
    const { source, list, items } = block;
    const one = { source, list, items: [], element: block.make() };
    if (items) show(one.element, one.items, items);
    element.append(one.element);
    shown.push(one);
  }
}

// The blocks of a text, each with its source and how it is made: a list as an empty one, with what it has to show.
// depth: how many quotes and lists it stands in.
function blocks(text, depth = 0) {
  const lines = text.split("\n");
  const found = [];
  for (let i = 0; i < lines.length; ) {
    if (!lines[i].trim()) {
      i++;
      continue;
    }
    const [end, build, more] = block(lines, i, depth);
    found.push({ source: `${build.name} ${lines.slice(i, end).join("\n")}`, make: build, ...more });
    i = end;
  }
  return found;
}

// Where the block that begins at line `start` ends, how it is made, and what `blocks` says more of it.
function block(lines, start, depth) {
  const line = lines[start];
  const fence = FENCE.exec(line);
  if (fence) {
    const [end, isClosed] = endOfCode(lines, start, fence[1]);
    const code = lines.slice(start + 1, isClosed ? end - 1 : end).join("\n");
    return [end, function fenced() { return codeBlock(code, fence[2].trim()); }];
  }
  const heading = HEADING.exec(line);
  if (heading) return [start + 1, () => make(`h${Math.min(heading[1].length + 2, 6)}`, {}, inline(heading[2]))];
  if (RULE.test(line)) return [start + 1, () => make("hr")];
  const canNest = depth < MAX_DEPTH;
  if (canNest && QUOTE.test(line)) {
    const end = endWhere(lines, start, (one) => !QUOTE.test(one));
    const inner = lines.slice(start, end).map((one) => one.replace(QUOTE, "")).join("\n");
    return [end, () => filled("blockquote", blocks(inner, depth + 1))];
  }
  if (canNest && ITEM.test(line)) {
    const end = endOfList(lines, start);
    return [end, ...list(lines.slice(start, end), depth + 1)];
  }
  if (isTable(lines, start)) {
    const end = endWhere(lines, start, (one) => !one.includes("|"));
    return [end, () => table(lines.slice(start, end))];
  }
  const end = endWhere(lines, start, (one, i) => !one.trim() || (i > start && beginsBlock(lines, i)));
  const paragraph = lines.slice(start, end).join("\n");
  return [end, () => make("p", {}, inline(paragraph))];
}

function beginsBlock(lines, i) {
  return [FENCE, HEADING, RULE, QUOTE, ITEM].some((kind) => kind.test(lines[i])) || isTable(lines, i);
}

function endWhere(lines, start, isBehind) {
  let end = start;
  while (end < lines.length && !isBehind(lines[end], end)) end++;
  return Math.max(end, start + 1);
}

function endOfCode(lines, start, mark) {
  for (let i = start + 1; i < lines.length; i++) {
    const line = lines[i].trim();
    if (line.length >= mark.length && line === mark[0].repeat(line.length)) return [i + 1, true];
  }
  return [lines.length, false]; // the model is still writing it
}

export function codeBlock(code, language) {
  const copy = make("button", { type: "button", class: "copy" }, "Copy");
  copy.onclick = async () => {
    copy.textContent = (await copyText(code)) ? "Copied" : "Cannot copy";
    setTimeout(() => { copy.textContent = "Copy"; }, 2000);
  };
  const head = make("div", { class: "code-head" }, make("span", {}, language || "code"), copy);
  return make("div", { class: "code" }, head, make("pre", { tabindex: "0" }, make("code", {}, code)));
}

// The clipboard is there for https and for this machine only; elsewhere a selection is copied.
export async function copyText(text) {
  if (navigator.clipboard) return navigator.clipboard.writeText(text).then(() => true, () => false);
  const area = make("textarea", { readonly: true });
  area.value = text;
  document.body.append(area);
  area.select();
  const isCopied = document.execCommand("copy");
  area.remove();
  return isCopied;
}

// ---- lists and tables

function endOfList(lines, start) {
  const isOrdered = /\d/.test(ITEM.exec(lines[start])[2]);
  let end = start + 1;
  for (; end < lines.length; end++) {
    const item = ITEM.exec(lines[end]);
    if (item && !item[1].length && /\d/.test(item[2]) !== isOrdered) break;
    if (lines[end].trim()) {
      const isLoose = !lines[end - 1].trim();
      if (!item && ((isLoose && !/^ {2,}/.test(lines[end])) || (!isLoose && !/^ /.test(lines[end]) && beginsBlock(lines, end)))) break;
      if (RULE.test(lines[end])) break;
    }
  }
  while (!lines[end - 1].trim()) end--;
  return end;
}

function list(lines, depth) {
  const [, indent, mark] = ITEM.exec(lines[0]);
  const items = [];
  for (const line of lines) {
    const item = ITEM.exec(line);
    if (item && item[1].length <= indent.length + 1) {
      items.push({ width: item[0].length, lines: [line.slice(item[0].length)] });
    } else {
      const { width, lines: own } = items.at(-1);
      own.push(line.slice(Math.min(width, line.length - line.trimStart().length)));
    }
  }
  const start = parseInt(mark, 10);
  const tag = Number.isNaN(start) ? "ul" : "ol";
  return [
    () => make(tag, { start: tag === "ul" || start === 1 ? null : start }),
    { list: `${tag} ${start}`, items: items.map(({ lines: own }) => ({ source: own.join("\n"), make: () => listItem(own, depth) })) },
  ];
}

// The first lines of an item stand in it without a paragraph's margins.
function listItem(lines, depth) {
  const item = filled("li", blocks(lines.join("\n"), depth));
  const first = item.firstChild;
  if (first?.tagName === "P") first.replaceWith(...first.childNodes);
  return item;
}

function filled(tag, found) {
  const element = make(tag);
  show(element, [], found);
  return element;
}

function isTable(lines, i) {
  const next = lines[i + 1] ?? "";
  return [lines[i], next].every((line) => line.includes("|")) && next.includes("-") && DELIMITERS.test(next)
    && cells(lines[i]).length === cells(next).length;
}

function cells(line) {
  return line.trim().replace(/^\||\|$/g, "").split("|").map((cell) => cell.trim());
}

function table([head, delimiters, ...rows]) {
  const width = cells(head).length;
  const sides = cells(delimiters).map((cell) => (!cell.endsWith(":") ? null : cell.startsWith(":") ? "center" : "right"));
  const row = (line, tag) => make("tr", {}, Array.from({ length: width }, (_, i) => make(tag, { class: sides[i] }, inline(cells(line)[i] ?? ""))));
  const body = make("table", {}, make("thead", {}, row(head, "th")), make("tbody", {}, rows.map((line) => row(line, "td"))));
  return make("div", { class: "table", tabindex: "0" }, body);
}

// ---- within a line

// Each rule looks only behind the last; what none of them takes is text.
const INLINE = [
  [/(`+)([^`](?:.*?[^`])?)\1(?!`)/s, ([, , code]) => make("code", {}, code.replace(/^ (.*) $/s, "$1"))],
  [/!?\[([^\]\n]*)\]\(<?([^\s()<>]*(?:\([^\s()]*\)[^\s()<>]*)*)>?(?:\s+"[^"]*")?\)/, ([, text, address]) => link(text, address)],
  [/\bhttps?:\/\/[^\s<>"'`)\]*]*[^\s<>"'`)\]*.,;:!?]/, ([address]) => link(null, address)],
  [/\*\*(?=\S)(.+?)(?<=\S)\*\*|(?<!\w)__(?=\S)(.+?)(?<=\S)__(?!\w)/s, ([, a, b]) => make("strong", {}, inline(a ?? b))],
  [/\*(?=[^\s*])([^*]+?)(?<=\S)\*|(?<!\w)_(?=[^\s_])([^_]+?)(?<=\S)_(?!\w)/s, ([, a, b]) => make("em", {}, inline(a ?? b))],
  [/~~(?=\S)(.+?)(?<=\S)~~/s, ([, text]) => make("del", {}, inline(text))],
  [/\\([!-/:-@[-`{-~])/, ([, sign]) => sign],
  [/(?: {2,}|\\)?\n/, () => make("br")],
];

export function inline(text) {
  const made = [];
  const next = INLINE.map(([kind, build]) => ({ kind: new RegExp(kind, `${kind.flags}g`), build }));
  let end = 0;
  for (;;) {
    let first = null;
    for (const rule of next) {
      if (rule.match !== null && !(rule.match?.index >= end)) { // what stands further on was found before
        rule.kind.lastIndex = end;
        rule.match = rule.kind.exec(text);
      }
      if (rule.match && !(first?.match.index <= rule.match.index)) first = rule;
    }
    made.push(text.slice(end, first?.match.index));
    if (!first) return made.filter((one) => one !== "");
    made.push(first.build(first.match));
    end = first.match.index + first.match[0].length;
  }
}

function link(text, address) {
  const shown = text === null ? [address] : inline(text || address);
  if (!/^(https?:\/\/|mailto:)/i.test(address)) return text ? shown : address;
  return make("a", { href: address, target: "_blank", rel: "noopener noreferrer" }, shown);
}
