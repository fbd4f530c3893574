// @ts-check
/** The page: which view the address names, navigation, the key, the theme, and the banner when the server is away. */

import { announce } from "./lib/announce.js";
import { api } from "./lib/api.js";
import { askedKey } from "./lib/dialog.js";
import { errorNotice, fill, h } from "./lib/dom.js";
import { apiKey, keepApiKey } from "./lib/state.js";
import { views } from "./views/index.js";

const main = /** @type {HTMLElement} */ (document.getElementById("main"));
const banner = /** @type {HTMLElement} */ (document.getElementById("banner"));
const keyButton = /** @type {HTMLButtonElement} */ (document.getElementById("key"));
const themeButton = /** @type {HTMLButtonElement} */ (document.getElementById("theme"));
const navigation = /** @type {HTMLElement} */ (document.getElementById("views"));

let leaving = new AbortController();
let first = true;

/** The view and parameters that the address names. */
function place() {
  const [path, query] = location.hash.replace(/^#\/?/, "").split("?");
  return { view: views.find((each) => each.path === path), hash: new URLSearchParams(query ?? "") };
}

/** Show the view that the address names, from its beginning. */
async function show() {
  const { view, hash } = place();
  if (!view) {
    location.replace(`#/${views[0].path}`);
    return;
  }
  leaving.abort();
  leaving = new AbortController();
  const { signal } = leaving;
  document.title = `${view.title} · softprompt studio`;
  navigation.querySelectorAll("a").forEach((link) => {
    if (link.dataset.view === view.path) {
      link.setAttribute("aria-current", "page");
      navigation.scrollLeft = link.offsetLeft - navigation.offsetLeft - navigation.clientWidth / 2; // seen on a phone, too
    } else {
      link.removeAttribute("aria-current");
    }
  });
  const root = h("div", { class: `view view-${view.path}` });
  fill(main, h("h1", null, view.title), root);
  if (!first) {
    main.focus();
    announce(view.title);
  }
  first = false;
  try {
    await view.render(root, { api, hash, setHash: (params) => setHash(view.path, params), announce, signal });
  } catch (error) {
    if (!signal.aborted) fill(root, errorNotice(error));
  }
}

/** Keep what a view shows in the address, without a new entry of the history and without drawing it again. @param {string} path @param {URLSearchParams} params */
function setHash(path, params) {
  const query = params.toString();
  history.replaceState(null, "", `#/${path}${query ? `?${query}` : ""}`);
}

/** Ask for a key; resolves to whether there is a new one. @param {string} reason */
async function changeKey(reason) {
  const key = await askedKey(reason, Boolean(apiKey()));
  if (key === null) return false;
  keepApiKey(key);
  showKey();
  return true;
}

function showKey() {
  keyButton.textContent = apiKey() ? "Key ✓" : "Key";
  keyButton.setAttribute("aria-label", apiKey() ? "API key: given" : "API key: none");
}

const THEMES = ["auto", "light", "dark"];

function theme() {
  return document.documentElement.dataset.theme ?? "auto";
}

function showTheme() {
  themeButton.textContent = { auto: "◐", light: "☀", dark: "☾" }[theme()] ?? "◐";
  themeButton.setAttribute("aria-label", `Theme: ${theme()}`);
  themeButton.title = `Theme: ${theme()}`;
}

function nextTheme() {
  const next = THEMES[(THEMES.indexOf(theme()) + 1) % THEMES.length];
  if (next === "auto") {
    delete document.documentElement.dataset.theme;
    localStorage.removeItem("softprompt-theme");
  } else {
    document.documentElement.dataset.theme = next;
    localStorage.setItem("softprompt-theme", next);
  }
  showTheme();
  announce(`Theme: ${next}`);
  document.dispatchEvent(new CustomEvent("softprompt-theme"));
}

function start() {
  fill(navigation, views.map((view) => h("a", { href: `#/${view.path}`, dataset: { view: view.path } }, view.title)));
  document.querySelector(".skip")?.addEventListener("click", (event) => {
    event.preventDefault(); // the hash names the view
    main.focus();
  });
  keyButton.addEventListener("click", async () => {
    if (await changeKey("")) show();
  });
  themeButton.addEventListener("click", nextTheme);
  api.onKeyNeeded(changeKey);
  api.onAway(() => {
    banner.textContent = "The server does not answer. What you typed stays; this page goes on when it is back.";
    banner.hidden = false;
  });
  api.onBack(() => {
    banner.hidden = true;
    announce("The server is back.");
  });
  showKey();
  showTheme();
  window.addEventListener("hashchange", show);
  show();
}

start();
