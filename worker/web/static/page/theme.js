// Dark or light. No module: it runs before anything is drawn, so that a page that was set to dark does not flash.
"use strict";

{
  const NAME = "endstop.theme";
  const AFTER = { auto: "light", light: "dark", dark: "auto" };
  let theme = "auto";
  try {
    theme = localStorage.getItem(NAME) in AFTER ? localStorage.getItem(NAME) : "auto";
  } catch { /* a browser that keeps nothing: as the system has it */ }

  const show = () => {
    document.documentElement.dataset.theme = theme;
    const button = document.getElementById("theme");
    if (button) button.textContent = `Theme: ${theme}`;
  };

  show();
  document.addEventListener("DOMContentLoaded", () => {
    show();
    document.getElementById("theme").addEventListener("click", () => {
      theme = AFTER[theme];
      try { localStorage.setItem(NAME, theme); } catch { /* until the page is closed */ }
      show();
    });
  });
}
