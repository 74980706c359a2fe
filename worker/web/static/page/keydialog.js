// Asks a person for the API key.

import { key } from "./api.js";
import { byId } from "./dom.js";

// Resolves to whether a key was given. `reason` is why it is needed, or "".
export function askForKey(reason = "") {
  const dialog = byId("key-dialog");
  if (dialog.open) return Promise.resolve(false); // somebody else has asked; whoever comes second tries again later
  byId("key-reason").textContent = reason;
  byId("key").value = key.get();
  dialog.returnValue = "cancel"; // Escape closes it without a button
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => {
      const isGiven = dialog.returnValue === "save";
      if (isGiven) key.set(byId("key").value.trim());
      byId("key").value = "";
      resolve(isGiven);
    }, { once: true });
  });
}
