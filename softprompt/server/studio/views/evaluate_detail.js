// @ts-check
/** One row of an evaluation as a whole, in a dialog: its turns, and every answer with its differences. */

import { field, fill, h, uniqueId } from "../lib/dom.js";
import { writeColumns } from "./compare_columns.js";
import { differences } from "./evaluate_diff.js";
import { referenceOf, verdict } from "./evaluate_score.js";

const REFERENCE = "reference";
const WORDS = { gone: ["del", "left out: "], new: ["ins", "added: "] };

/** The dialog; `open(i, rows)` shows row number `i` and steps through `rows`. */
export class RowDetail {
  /** @param {{rows: any[], columns: any[], titles: string[], cells: any[][]}} matrix */
  constructor(matrix) {
    this.matrix = matrix;
    this.against = REFERENCE;
    const id = uniqueId("row");
    this.heading = h("h2", { id });
    this.body = h("div", { class: "stack" });
    this.previous = h("button", { type: "button", onClick: () => this.move(-1) }, "Previous");
    this.following = h("button", { type: "button", onClick: () => this.move(1) }, "Next");
    const close = h("button", { type: "button", class: "primary", onClick: () => this.element.close() }, "Close");
    const options = [[REFERENCE, "The right answer"], ...matrix.titles.map((title, c) => [String(c), title])];
    const compared = h(
      "select",
      { onChange: (/** @type {any} */ event) => this.compare(event.target.value) },
      options.map(([value, label]) => h("option", { value }, label)),
    );
    this.element = h(
      "dialog",
      { class: "row-detail", "aria-labelledby": id },
      h(
        "div",
        { class: "stack" },
        h("div", { class: "toolbar" }, this.heading),
        field("Differences from", compared),
        this.body,
      ),
      h("div", { class: "actions" }, this.previous, this.following, h("span", { class: "stretch" }), close),
    );
    this.element.addEventListener("close", () => this.element.remove());
    window.addEventListener("hashchange", () => this.element.close(), { once: true });
  }

  /** @param {number} row @param {number[]} among the rows to step through */
  open(row, among) {
    this.among = among;
    this.at = among.indexOf(row);
    document.body.append(this.element);
    this.draw();
    this.element.showModal();
  }

  move(by) {
    this.at += by;
    this.draw();
  }

  compare(against) {
    this.against = against;
    this.draw();
  }

  draw() {
    const i = this.among[this.at];
    const { rows, titles, cells } = this.matrix;
    const row = rows[i];
    this.heading.textContent = `Line ${row.line}`;
    this.previous.disabled = this.at === 0;
    this.following.disabled = this.at === this.among.length - 1;
    const turns = row.messages.map((turn) =>
      h("p", { class: "said" }, h("strong", null, `${turn.role}: `), turn.content),
    );
    const answers = titles.map((title, c) =>
      this.answer(title, cells[c][i], row, this.baseText(i), String(c) === this.against),
    );
    const right = h(
      "section",
      { class: "stack" },
      h("h3", null, "Right answer"),
      row.references.length
        ? row.references.map((one) => h("p", { class: "answer" }, one))
        : h("p", { class: "hint" }, "The row has none."),
    );
    fill(this.body, turns, this.compareLink(row), right, answers);
  }

  /** A link that asks the same columns in Compare, where they can be asked further. */
  compareLink(row) {
    if (row.messages.length !== 1) return null;
    const hash = new URLSearchParams();
    writeColumns(this.matrix.columns, hash);
    hash.append("prompt", row.messages[0].content);
    return h("p", null, h("a", { href: `#/compare?${hash}` }, "Open in Compare"));
  }

  /** The text that answers are compared with; null where there is none. */
  baseText(i) {
    const { rows, cells } = this.matrix;
    if (this.against === REFERENCE) return rows[i].references.length === 1 ? referenceOf(rows[i]) : null;
    return cells[Number(this.against)][i]?.answer ?? null;
  }

  answer(title, cell, row, before, isBase) {
    const right = verdict(cell, row);
    const words =
      right === null ? null : h("span", { class: `badge ${right ? "good" : "bad"}` }, right ? "right" : "wrong");
    const heading = h("h3", null, title, " ", words);
    if (!cell) return h("section", { class: "stack" }, heading, h("p", { class: "hint" }, "Not answered yet."));
    if (cell.error) return h("section", { class: "stack" }, heading, h("p", { class: "notice bad" }, cell.error));
    const parts = before === null || isBase ? [cell.answer] : differences(before, cell.answer).map(changed);
    const cut = cell.finish === "length" ? h("p", { class: "hint" }, "Cut at the longest answer.") : null;
    return h("section", { class: "stack" }, heading, h("p", { class: "answer" }, parts), cut);
  }
}

function changed({ kind, text }) {
  if (kind === "same") return text;
  const [tag, words] = WORDS[kind];
  return h(tag, null, h("span", { class: "unseen" }, words), text);
}
