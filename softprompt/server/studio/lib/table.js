// @ts-check
/** A table that sorts by its columns, within a frame that scrolls instead of the page. */

import { fill, h } from "./dom.js";

/**
 * @typedef {{key: string, title: string, numeric?: boolean, sortable?: boolean, cell?: (row: any) => any, sortBy?: (row: any) => any}} Column
 */

/**
 * The table's element; `update(rows)` shows other rows in the same order.
 * @param {{caption: string, columns: Column[], rows?: any[], rowHeader?: string, rowClass?: (row: any) => string}} options
 *   `caption` is read to screen readers; `rowHeader` is the key of the column whose cells name their rows
 * @returns {{element: any, update: (rows: any[]) => void}}
 */
export function table({ caption, columns, rows = [], rowHeader = columns[0].key, rowClass }) {
  let order = { key: "", down: false };
  let shown = rows;
  const body = h("tbody");
  const head = h("tr");
  const draw = () => {
    fill(head, columns.map((column) => headerCell(column, order, sort)));
    fill(body, sorted(shown, columns, order).map((row) => line(row, columns, rowHeader, rowClass)));
  };
  const sort = (/** @type {string} */ key) => {
    order = { key, down: order.key === key && !order.down };
    draw();
    head.querySelector(`[data-key="${CSS.escape(key)}"]`)?.focus();
  };
  draw();
  const inner = h("table", null, h("caption", { class: "unseen" }, caption), h("thead", null, head), body);
  const element = h("div", { class: "table", tabindex: "0", role: "region", "aria-label": caption }, inner);
  return { element, update: (rows) => { shown = rows; draw(); } };
}

/** @param {Column} column @param {{key: string, down: boolean}} order @param {(key: string) => void} sort */
function headerCell(column, order, sort) {
  const isSorted = order.key === column.key;
  const direction = isSorted ? (order.down ? "descending" : "ascending") : null;
  const kind = column.numeric ? "number" : "";
  if (column.sortable === false) return h("th", { scope: "col", class: kind }, column.title);
  const button = h(
    "button",
    { type: "button", class: "sort", dataset: { key: column.key }, onClick: () => sort(column.key) },
    column.title,
    h("span", { class: "arrow", "aria-hidden": "true" }, isSorted ? (order.down ? " ↓" : " ↑") : ""),
  );
  return h("th", { scope: "col", class: kind, "aria-sort": direction }, button);
}

/** @param {any} row @param {Column[]} columns @param {string} rowHeader @param {((row: any) => string) | undefined} rowClass */
function line(row, columns, rowHeader, rowClass) {
  const cells = columns.map((column) => {
    const tag = column.key === rowHeader ? "th" : "td";
    const props = { class: column.numeric ? "number" : "", scope: tag === "th" ? "row" : null };
    return h(tag, props, column.cell ? column.cell(row) : row[column.key]);
  });
  return h("tr", { class: rowClass?.(row) ?? "" }, cells);
}

/** @param {any[]} rows @param {Column[]} columns @param {{key: string, down: boolean}} order */
function sorted(rows, columns, order) {
  const column = columns.find((each) => each.key === order.key);
  if (!column) return rows;
  const value = column.sortBy ?? ((row) => row[column.key]);
  const compare = (a, b) => {
    const [left, right] = [value(a), value(b)];
    if (typeof left === "number" && typeof right === "number") return left - right;
    return String(left ?? "").localeCompare(String(right ?? ""), undefined, { numeric: true });
  };
  return [...rows].sort((a, b) => (order.down ? compare(b, a) : compare(a, b)));
}
