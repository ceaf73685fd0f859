// What the pages do beyond links and forms: a theme, copying, the menu of narrow screens, keys.
// Everything else works without this file.

"use strict";

const root = document.documentElement;
root.classList.remove("no-script");

// -- the theme: the system's, until somebody chooses --------------------------------------------

const isDark = () =>
  (root.dataset.theme || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";

function toggleTheme() {
  root.dataset.theme = isDark() ? "light" : "dark";
  localStorage.setItem("theme", root.dataset.theme);
}

// -- copying ---------------------------------------------------------------------------------------

async function copy(button) {
  const source = document.getElementById(button.dataset.copy);
  const before = button.textContent;
  try {
    await navigator.clipboard.writeText(source.textContent.trim());
    button.textContent = "Copied";
  } catch {
    getSelection().selectAllChildren(source);
    button.textContent = "Press Ctrl-C";
  }
  setTimeout(() => { button.textContent = before; }, 1600);
}

// -- clicks -------------------------------------------------------------------------------------------

document.addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (!button) return;
  if (button.dataset.copy) copy(button);
  else if (button.dataset.do === "theme") toggleTheme();
  else if (button.dataset.do === "menu") {
    const open = document.querySelector(".side").classList.toggle("open");
    button.setAttribute("aria-expanded", String(open));
  } else if (button.dataset.do === "keys") document.getElementById("keys").showModal();
});

// A form that destroys something asks first.
document.addEventListener("submit", (event) => {
  const question = event.target.dataset.ask;
  if (question && !confirm(question)) event.preventDefault();
});

// A choice in a filter applies at once.
document.addEventListener("change", (event) => {
  const form = event.target.closest("form[data-at-once]");
  if (form) form.requestSubmit();
});

// -- keys: g and a letter go to a page, / to the filter, ? shows them -----------------------------

let going = -Infinity;

document.addEventListener("keydown", (event) => {
  const typing = event.target.closest("input, select, textarea, dialog");
  if (typing || event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === "g") {
    going = event.timeStamp;
  } else if (event.timeStamp - going < 1200) {
    going = -Infinity;
    const link = document.querySelector(`[data-key="${CSS.escape(event.key)}"]`);
    if (link) link.click();
  } else if (event.key === "/") {
    const filter = document.querySelector("[data-filter]");
    if (filter) { event.preventDefault(); filter.focus(); }
  } else if (event.key === "?") {
    const keys = document.getElementById("keys");
    if (keys) keys.showModal();
  } else if (event.key === "t") {
    toggleTheme();
  }
});
