// @ts-check
/** The form in which columns are chosen, of Compare and Evaluate. */

import { field, fill, h } from "../lib/dom.js";
import { BASE, MOST_COLUMNS, TEXT, columnOf, linkName, modelOf, nameOf, softPrompts } from "./compare_columns.js";

const PLACES = { system: "As the system turn", front: "Before the user's words" };

/**
 * The form; it changes `columns` in place.
 * @param {import("./compare_columns.js").Model[]} models
 * @param {import("./compare_columns.js").Column[]} columns
 * @param {(column: any) => void} onChange with the column whose text became another, or null where a column was added,
 *   removed or replaced
 */
export function columnPicker(models, columns, onChange) {
  const list = h("div", { class: "grid column-choices" });
  const add = h("button", { type: "button" }, "Add a column");
  const draw = (/** @type {number} */ focused = -1) => {
    fill(
      list,
      columns.map((column, i) => choice(column, i)),
    );
    add.disabled = columns.length >= MOST_COLUMNS;
    if (focused >= 0) list.children[focused]?.querySelector("select")?.focus();
  };
  const changed = (/** @type {number} */ focused) => {
    draw(focused);
    onChange(null);
  };
  const choice = (/** @type {any} */ column, /** @type {number} */ i) => {
    const parts = h("div", { class: "stack" });
    const drawText = () =>
      fill(parts, columns[i].kind === "text" ? textPrompt(columns[i], () => onChange(columns[i])) : null);
    // The select stays the same element: people type in it, and each letter may choose another option.
    const become = (/** @type {string} */ name) => {
      if (columns[i].kind === "text") column = columns[i]; // whose text comes back with the kind
      columns[i] = columnOf(name, column.text, column.place);
      drawText();
      onChange(null);
    };
    const remove = () => {
      columns.splice(i, 1);
      changed(Math.min(i, columns.length - 1));
    };
    const removal = h(
      "button",
      {
        type: "button",
        class: "quiet",
        "aria-label": `Remove column ${i + 1}`,
        disabled: columns.length === 1,
        onClick: remove,
      },
      "Remove",
    );
    drawText();
    return h(
      "div",
      { class: "column-choice stack" },
      field(`Column ${i + 1}`, selection(column, models, become)),
      parts,
      removal,
    );
  };
  add.addEventListener("click", () => {
    const unused = softPrompts(models).find((model) => !columns.some((column) => modelOf(column, models) === model));
    columns.push(columnOf(unused ? linkName(unused, models) : TEXT));
    changed(columns.length - 1);
  });
  draw();
  return h("fieldset", { class: "columns" }, h("legend", null, "Columns"), list, h("div", { class: "actions" }, add));
}

/** @param {any} column @param {any[]} models @param {(name: string) => void} become */
function selection(column, models, become) {
  const name = nameOf(column);
  const soft = softPrompts(models).map((model) => linkName(model, models));
  const isKnown = column.kind !== "soft" || soft.includes(name);
  const options = [
    h("option", { value: BASE }, "Base model"),
    h("option", { value: TEXT }, "Text prompt"),
    soft.length || !isKnown
      ? h(
          "optgroup",
          { label: "Soft prompts" },
          isKnown ? null : h("option", { value: name }, name),
          soft.map((one) => h("option", { value: one }, one)),
        )
      : null,
  ];
  return h("select", { value: name, onChange: (/** @type {any} */ event) => become(event.target.value) }, options);
}

/** @param {any} column @param {() => void} onChange */
function textPrompt(column, onChange) {
  const typed = (/** @type {any} */ event) => {
    column.text = event.target.value;
    onChange();
  };
  const placed = (/** @type {any} */ event) => {
    column.place = event.target.value;
    onChange();
  };
  const text = h("textarea", {
    rows: "3",
    placeholder: "You are a kind assistant …",
    value: column.text,
    onInput: typed,
  });
  const options = Object.entries(PLACES).map(([value, label]) => h("option", { value }, label));
  return [
    field("Its text", text),
    field("Where it stands", h("select", { value: column.place, onChange: placed }, options)),
  ];
}

/** Draw a view with the key's models; where the server is away, as soon as it is back. */
export async function drawOnce(context, draw) {
  let isDrawn = false;
  const load = async () => {
    if (isDrawn) return;
    const { data } = await context.api.get("/v1/models", { signal: context.signal });
    isDrawn = true;
    await draw(data);
  };
  context.api.onBack(() => load().catch(() => {}), context.signal); // the banner tells of a server that is away again
  await load();
}
