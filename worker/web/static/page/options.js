// The settings of the chat, kept over a reload: fields of a request by the names that the API has for them.

import { byId } from "./dom.js";

const NAME = "endstop.options";
const NUMBERS = ["temperature", "top_p", "max_tokens", "seed"];
const FIELDS = ["system", "tools", ...NUMBERS];

export function keepOptions() {
  let kept = {};
  try {
    kept = JSON.parse(localStorage.getItem(NAME)) ?? {};
  } catch { /* by another version, or broken */ }
  for (const field of FIELDS) byId(field).value = kept[field] ?? "";
  byId("tools").addEventListener("input", checkTools);
  checkTools();
  byId("options").addEventListener("input", () => {
    const values = Object.fromEntries(FIELDS.map((field) => [field, byId(field).value]));
    try { localStorage.setItem(NAME, JSON.stringify(values)); } catch { /* until the page is closed */ }
  });
  byId("options").addEventListener("submit", (event) => event.preventDefault());
}

// Whether every field has a value that the server takes; shows the first that has not.
export function areOptionsValid() {
  const isValid = byId("options").checkValidity();
  if (!isValid) {
    byId("options-fold").open = true;
    byId("options").reportValidity();
  }
  return isValid;
}

export const systemPrompt = () => byId("system").value.trim();

// Fields of a request. What is left empty is the server's to choose.
export function fields() {
  const given = NUMBERS.filter((field) => byId(field).value !== "").map((field) => [field, byId(field).valueAsNumber]);
  return { ...Object.fromEntries(given), ...(byId("tools").value.trim() && { tools: JSON.parse(byId("tools").value) }) };
}

// Of what they have to be the server says more.
function checkTools() {
  let isList = true;
  try {
    isList = !byId("tools").value.trim() || Array.isArray(JSON.parse(byId("tools").value));
  } catch {
    isList = false;
  }
  byId("tools").setCustomValidity(isList ? "" : "This is no JSON list.");
}
