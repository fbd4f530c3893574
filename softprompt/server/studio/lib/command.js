// @ts-check
/** The same action as a command: curl and, where there is one, a line of the command line. */

import { address } from "./api.js";
import { announce } from "./announce.js";
import { h } from "./dom.js";
import { apiKey } from "./state.js";

/** A word for a POSIX shell. @param {string} text */
export function quoted(text) {
  return /^[\w@%+=:,./-]+$/.test(text) ? text : `'${text.replaceAll("'", `'\\''`)}'`;
}

/**
 * A curl line. The key stays out of it: the line reads it from the environment.
 * @param {string} method @param {string} path @param {any} [body] sent as JSON
 * @param {string[]} [options] further words, such as ["-N"]
 */
export function curl(method, path, body, options = []) {
  const parts = ["curl", ...options];
  if (method !== "GET" && !(method === "POST" && body !== undefined)) parts.push("-X", method);
  parts.push(quoted(address(path)));
  if (apiKey()) parts.push('-H "Authorization: Bearer $SOFTPROMPT_API_KEY"');
  if (body !== undefined) parts.push("-H 'Content-Type: application/json'", "-d", quoted(JSON.stringify(body)));
  return parts.join(" ");
}

/**
 * A closed disclosure "As a command" with lines and copy buttons; null without any line.
 * @param {{curl?: string, cli?: string}} lines
 */
export function commands({ curl: request, cli }) {
  const shown = [["curl", request], ["softprompt", cli]].filter(([, line]) => line);
  if (!shown.length) return null;
  return h(
    "details",
    { class: "commands" },
    h("summary", null, "As a command"),
    shown.map(([name, line]) => commandLine(String(name), String(line))),
  );
}

/** @param {string} name @param {string} line */
function commandLine(name, line) {
  const copy = async () => {
    try {
      await navigator.clipboard.writeText(line);
      announce(`The ${name} line is copied.`);
    } catch {
      getSelection()?.selectAllChildren(code); // no clipboard without HTTPS: selected, to be copied by hand
      announce(`The ${name} line is selected.`);
    }
  };
  const code = h("code", null, line);
  const button = h("button", { type: "button", class: "quiet", "aria-label": `Copy the ${name} line`, onClick: copy }, "Copy");
  return h("div", { class: "command" }, h("pre", { tabindex: "0", "aria-label": `${name} line` }, code), button);
}
