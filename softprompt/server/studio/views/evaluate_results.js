// @ts-check
/** The results of an evaluation: a line for each column, filters and search, and the matrix page by page. */

import { field, fill, h } from "../lib/dom.js";
import { csvOf } from "./evaluate_csv.js";
import { RowDetail } from "./evaluate_detail.js";
import { FILTERS, baselineOf, chosenRows, proportion, questionOf, referenceOf, verdict } from "./evaluate_score.js";

const PAGE = 50; // rows
const LAG_MS = 250; // between summaries while answers arrive
const SHOWN = 300; // characters of a text in the matrix

/** The results on the page. */
export class Results {
  /**
   * @param {{rows: any[], columns: any[], titles: string[], cells: any[][], filter: string, search: string,
   *   onFilter: (filter: string, search: string) => void, announce: (text: string) => void}} matrix
   */
  constructor(matrix) {
    this.matrix = matrix;
    this.page = 0;
    this.shown = new Map();
    this.summary = h("div", { class: "table", tabindex: "0", role: "region", "aria-label": "Scores" });
    this.body = h("tbody");
    this.range = h("span", { class: "hint" });
    this.previous = h("button", { type: "button", onClick: () => this.turn(-1) }, "Previous page");
    this.following = h("button", { type: "button", onClick: () => this.turn(1) }, "Next page");
    this.save = h("button", { type: "button", onClick: () => this.download() }, "Export as CSV");
    const pager = h(
      "nav",
      { class: "toolbar", "aria-label": "Pages" },
      this.previous,
      this.following,
      this.range,
      h("span", { class: "stretch" }),
      this.save,
    );
    this.element = h(
      "section",
      { class: "stack results", "aria-label": "Results" },
      this.summary,
      this.controls(),
      this.frame(),
      pager,
    );
    this.choose();
  }

  controls() {
    const { columns, filter, search } = this.matrix;
    const baseline = baselineOf(columns);
    const against = baseline < 0 ? "" : columns[baseline].kind === "text" ? " against text prompt" : " against base";
    const needsBoth = !columns.some((column) => column.kind === "soft") || baseline < 0;
    const options = Object.entries(FILTERS).map(([value, label]) => {
      const isCompared = value === "regressed" || value === "fixed";
      return h("option", { value, disabled: isCompared && needsBoth }, isCompared ? label + against : label);
    });
    this.filter = h("select", { value: filter, onChange: () => this.filtered() }, options);
    this.search = h("input", { type: "search", value: search, autocomplete: "off", onInput: () => this.filtered() });
    return h("div", { class: "toolbar" }, field("Show", this.filter), field("Search", this.search));
  }

  frame() {
    const heads = ["Row", "Question", "Right answer", ...this.matrix.titles].map((title) =>
      h("th", { scope: "col" }, title),
    );
    const table = h(
      "table",
      { class: "matrix" },
      h("caption", { class: "unseen" }, "Rows and their answers"),
      h("thead", null, h("tr", null, heads)),
      this.body,
    );
    return h("div", { class: "table", tabindex: "0", role: "region", "aria-label": "Rows and their answers" }, table);
  }

  filtered() {
    this.matrix.filter = this.filter.value;
    this.matrix.search = this.search.value;
    this.matrix.onFilter(this.matrix.filter, this.matrix.search);
    this.page = 0;
    this.choose();
    this.matrix.announce(`${this.chosen.length} rows`);
  }

  turn(by) {
    this.page += by;
    this.draw();
  }

  /** Choose the rows anew, and show them. */
  choose() {
    const { rows, columns, cells, filter, search } = this.matrix;
    this.chosen = chosenRows(rows, columns, cells, filter, search);
    this.page = Math.min(this.page, Math.max(0, Math.ceil(this.chosen.length / PAGE) - 1));
    this.draw();
    this.drawSummary();
  }

  draw() {
    const start = this.page * PAGE;
    const part = this.chosen.slice(start, start + PAGE);
    this.shown.clear();
    fill(this.body, part.length ? part.map((i) => this.line(i)) : this.nothing());
    const last = start + part.length;
    this.range.textContent = part.length
      ? `${(start + 1).toLocaleString("en")}–${last.toLocaleString("en")} of ${this.chosen.length.toLocaleString("en")}`
      : "no rows";
    this.previous.disabled = this.page === 0;
    this.following.disabled = last >= this.chosen.length;
    this.save.disabled = !this.chosen.length;
  }

  nothing() {
    return h(
      "tr",
      null,
      h(
        "td",
        { colspan: String(3 + this.matrix.titles.length), class: "hint" },
        "No row is shown: choose “All rows”, or search for something else.",
      ),
    );
  }

  line(i) {
    const { rows, titles, cells } = this.matrix;
    const row = rows[i];
    const opened = () => new RowDetail(this.matrix).open(i, this.chosen);
    const button = h(
      "button",
      { type: "button", class: "quiet", "aria-label": `Line ${row.line}, in full`, onClick: opened },
      String(row.line),
    );
    const answers = titles.map((_, c) => {
      const cell = h("td");
      this.shown.set(`${c}.${i}`, cell);
      fillAnswer(cell, cells[c][i], row);
      return cell;
    });
    return h(
      "tr",
      null,
      h("th", { scope: "row" }, button),
      h("td", null, clipped(questionOf(row))),
      h("td", null, clipped(referenceOf(row))),
      answers,
    );
  }

  /** An answer has come: show it at once, and count it a little later. */
  changed(column, row) {
    const cell = this.shown.get(`${column}.${row}`);
    if (cell) fillAnswer(cell, this.matrix.cells[column][row], this.matrix.rows[row]);
    this.timer ??= setTimeout(() => this.count(), LAG_MS);
  }

  count() {
    this.timer = null;
    if (this.matrix.filter === "all" && !this.matrix.search) this.drawSummary();
    else this.choose();
  }

  drawSummary() {
    const { rows, columns, titles, cells } = this.matrix;
    const lines = columns.map((_, c) => {
      const answered = cells[c].filter((cell) => cell && !cell.error).length;
      const failed = cells[c].filter((cell) => cell?.error).length;
      const score = proportion(rows.map((row, i) => verdict(cells[c][i], row)));
      const numbers = [
        `${answered} of ${rows.length}`,
        failed,
        score ? score.hits : "–",
        percent(score?.share),
        score ? `${percent(score.low)} to ${percent(score.high)}` : "–",
      ];
      return h(
        "tr",
        null,
        h("th", { scope: "row" }, titles[c]),
        numbers.map((value) => h("td", { class: "number" }, value)),
      );
    });
    const heads = ["Column", "Answered", "Errors", "Right", "Exact match", "95 % interval"].map((title, i) =>
      h("th", { scope: "col", class: i ? "number" : "" }, title),
    );
    fill(
      this.summary,
      h(
        "table",
        null,
        h("caption", { class: "unseen" }, "Scores"),
        h("thead", null, h("tr", null, heads)),
        h("tbody", null, lines),
      ),
    );
  }

  download() {
    const { rows, titles, cells } = this.matrix;
    const blob = new Blob([csvOf(rows, titles, cells, this.chosen)], { type: "text/csv;charset=utf-8" });
    const link = h("a", { href: URL.createObjectURL(blob), download: "evaluation.csv" });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
  }
}

function fillAnswer(element, cell, row) {
  const right = verdict(cell, row);
  const mark =
    right === null
      ? null
      : h(
          "span",
          { class: `mark ${right ? "good" : "bad"}` },
          h("span", { "aria-hidden": "true" }, right ? "✓" : "✗"),
          h("span", { class: "unseen" }, right ? "right: " : "wrong: "),
        );
  const text = cell?.error
    ? h("span", { class: "mark bad" }, `Error: ${cell.error.slice(0, SHOWN)}`)
    : cell
      ? cell.answer.slice(0, SHOWN)
      : "…";
  fill(element, h("div", { class: "clip" }, mark, text));
}

function clipped(text) {
  return h("div", { class: "clip" }, text.slice(0, SHOWN));
}

function percent(share) {
  return share === undefined ? "–" : `${(share * 100).toFixed(1)} %`;
}
