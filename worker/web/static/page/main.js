// Which view is shown, and whether the server is ready. A view is named by what is behind # in the address.

import { readiness } from "./api.js";
import { Chat } from "./chat.js";
import { byId } from "./dom.js";
import { Operations } from "./operations.js";

const NOT_READY_MS = 2000;
const READY_MS = 5000;
const BUSY = { LOADING: "loading the model…", FULL: "busy", DRAINING: "stopping" };
const TITLES = { chat: "Endstop", operations: "Operations · Endstop" };

const operations = new Operations(byId("operations-view"));
new Chat();

function showView() {
  const name = location.hash.slice(1) || "chat";
  if (!Object.hasOwn(TITLES, name)) return; // the link that skips to the content
  for (const view of Object.keys(TITLES)) {
    byId(`${view}-view`).hidden = view !== name;
    document.querySelector(`a[href="#${view}"]`).toggleAttribute("aria-current", view === name);
  }
  document.title = TITLES[name];
  operations.isShown = name === "operations";
  if (name === "chat") byId("log").scrollTop = byId("log").scrollHeight;
}

async function showServer() {
  let text;
  let isReady = false;
  let isBusy = false;
  try {
    const { state, model, reason } = await readiness();
    isReady = state === "READY";
    isBusy = state in BUSY;
    text = isReady ? model : BUSY[state] ?? `out of order: ${reason}`;
  } catch {
    text = "cannot be reached";
  }
  const line = byId("server");
  if (line.textContent !== text) line.textContent = text;
  line.className = isReady ? "ready" : isBusy ? "busy" : "";
  setTimeout(showServer, isReady ? READY_MS : NOT_READY_MS);
}

// Settings lie beside the chat where there is room, and are folded above it where there is none.
const wide = matchMedia("(min-width: 60rem)");
const unfold = () => { byId("options-fold").open = wide.matches; };
wide.addEventListener("change", unfold);
unfold();

addEventListener("hashchange", showView);
showView();
showServer();
