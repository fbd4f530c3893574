// @ts-check
/** Modal dialogs: the browser's own element, which keeps the focus in and gives it back. */

import { h, uniqueId } from "./dom.js";

/**
 * Show a dialog; resolves to the value of the button that closed it, "" after Escape.
 * @param {string} title
 * @param {any[]} content
 * @param {any[]} buttons made by `h`; their `value` is the result
 * @returns {Promise<string>}
 */
function show(title, content, buttons) {
  const id = uniqueId("dialog");
  const form = h("form", { method: "dialog" }, h("h2", { id }, title), content, h("div", { class: "actions" }, buttons));
  const dialog = h("dialog", { "aria-labelledby": id }, form);
  form.addEventListener("submit", (event) => {
    event.preventDefault(); // the content policy allows no form to be sent
    dialog.close(event.submitter?.value ?? "");
  });
  document.body.append(dialog);
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => {
      dialog.remove();
      resolve(dialog.returnValue);
    });
    dialog.showModal();
  });
}

/**
 * Ask before something that cannot be undone; the focus is on Cancel.
 * @param {string} title @param {string} text @param {string} action the word on the button, e.g. "Delete"
 * @returns {Promise<boolean>}
 */
export async function confirmed(title, text, action) {
  const cancel = h("button", { value: "", autofocus: true }, "Cancel");
  const go = h("button", { value: "yes", class: "danger" }, action);
  return (await show(title, [h("p", null, text)], [cancel, go])) === "yes";
}

/**
 * Ask for the API key.
 * @param {string} reason the API's words, "" if the user opened the dialog
 * @param {boolean} hasKey whether there is one to forget
 * @returns {Promise<string | null>} the key, "" to forget it, null to leave it
 */
export async function askedKey(reason, hasKey) {
  const input = h("input", { type: "password", autocomplete: "off", spellcheck: "false", autofocus: true, id: uniqueId("key") });
  const content = [
    reason ? h("p", { class: "notice" }, reason) : null,
    h("div", { class: "field" }, h("label", { for: input.id }, "API key"), input),
    h("p", { class: "hint" }, "It stays in this tab and is sent to this server only."),
  ];
  const buttons = [
    hasKey ? h("button", { value: "forget", class: "quiet" }, "Forget the key") : null,
    h("button", { value: "", class: "quiet", type: "submit" }, "Cancel"),
    h("button", { value: "use", class: "primary" }, "Use this key"),
  ];
  // Enter in the field is "Use this key", not the first button.
  input.addEventListener("keydown", (/** @type {KeyboardEvent} */ event) => {
    if (event.key !== "Enter") return;
    event.preventDefault();
    input.form.requestSubmit(buttons[2]);
  });
  const result = await show("API key", content, buttons);
  if (result === "forget") return "";
  return result === "use" && input.value.trim() ? input.value.trim() : null;
}
