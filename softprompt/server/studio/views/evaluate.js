// @ts-check
/** Evaluate: the rows of a file through up to four columns, by the public API, and where the columns differ. */

import { commands, curl, quoted } from "../lib/command.js";
import { empty, errorNotice, fill, h } from "../lib/dom.js";
import { passOn } from "./compare_answer.js";
import { titlesOf } from "./compare_columns.js";
import { drawOnce } from "./compare_picker.js";
import { cliName } from "./compare_request.js";
import { Results } from "./evaluate_results.js";
import { Evaluation, cellBody } from "./evaluate_run.js";
import { choicesFor } from "./evaluate_score.js";
import { keyOf, linkOf, readSetup, samplingOf, setupForm } from "./evaluate_setup.js";
import { AnswerStore, keptLink } from "./evaluate_store.js";

const PATH = "/v1/chat/completions";
const ROWS_AT_ONCE = 1_000;

export const view = {
  path: "evaluate",
  title: "Evaluate",
  /** @param {any} root @param {any} context */
  async render(root, context) {
    const hash = context.hash.toString() ? context.hash : new URLSearchParams(keptLink());
    await drawOnce(context, (models) => {
      const page = new EvaluatePage(root, context, models, hash);
      page.draw();
      return page.resume();
    });
  },
};

/** The view: what is set up, and the run on the page, which may belong to an earlier setup. */
class EvaluatePage {
  constructor(root, context, models, hash) {
    this.root = root;
    this.context = context;
    this.models = models;
    this.setup = readSetup(hash, models);
    this.shown = { filter: hash.get("show") ?? "all", search: hash.get("search") ?? "" };
    /** @type {any} */
    this.run = null;
    context.signal.addEventListener("abort", () => this.leave());
    window.addEventListener("pagehide", () => this.run?.store.flush(), { signal: context.signal });
  }

  draw() {
    this.form = setupForm(this.setup, this.models, this.context, () => this.update());
    this.start = h("button", { type: "submit", class: "primary" }, "Start");
    this.halt = h("button", { type: "button", onClick: () => this.stop() }, "Stop");
    this.again = h("button", { type: "button", onClick: () => this.repeat() }, "Repeat the failed ones");
    this.status = h("span", { class: "hint" });
    this.progress = h("progress", { max: "1", value: 0, "aria-label": "Answers" });
    this.problem = h("div");
    this.commands = h("div", { class: "command-lines" });
    this.results = h("div");
    const submit = (/** @type {Event} */ event) => {
      event.preventDefault();
      this.begin();
    };
    const actions = h("div", { class: "actions" }, this.start, this.halt, this.again, this.status);
    fill(
      this.root,
      h("form", { class: "card", onSubmit: submit }, this.form, actions, this.progress, this.problem, this.commands),
      this.results,
    );
    fill(this.results, nothingYet());
    this.update();
  }

  /** What follows from the state: the link, the buttons, the progress and the commands. */
  update() {
    if (this.context.signal.aborted) return;
    const { run } = this;
    const isSame = run?.key === keyOf(this.setup);
    const open = run ? run.open() : 0;
    const failed = run ? run.failed() : 0;
    const total = run ? run.rows.length * run.columns.length : 0;
    const isBusy = Boolean(run?.evaluation) || this.isLoading;
    this.form.disabled = isBusy;
    this.start.textContent = isSame && open ? "Continue" : isSame ? "Start anew" : "Start";
    this.start.disabled = isBusy || !this.setup.file || !this.setup.columns.length;
    this.halt.disabled = !run?.evaluation;
    this.again.disabled = isBusy || !isSame || !failed;
    this.progress.value = total ? (total - open) / total : 0;
    this.status.textContent = this.isLoading ? "Reading the rows …" : run ? statusOf(run, total - open, total) : "";
    this.drawCommands();
    this.link();
  }

  link() {
    const hash = linkOf(this.setup);
    if (this.shown.filter !== "all") hash.set("show", this.shown.filter);
    if (this.shown.search) hash.set("search", this.shown.search);
    if (hash.toString() !== this.linked) this.context.setHash(hash);
    this.linked = hash.toString();
  }

  drawCommands() {
    const lines = this.commandLines();
    const text = JSON.stringify(lines);
    if (text === this.commanded) return;
    this.commanded = text;
    const isOpen = this.commands.querySelector("details")?.open;
    fill(this.commands, lines && commands(lines));
    if (isOpen && this.commands.firstChild) this.commands.firstChild.open = true;
  }

  /** The rows, the first request of each column, and the same columns by `softprompt eval`. */
  commandLines() {
    const { file, columns, numbers } = this.setup;
    if (!file) return null;
    const content = curl("GET", `/v1/files/${file}/content`, undefined, ["-o", "rows.jsonl"]);
    const row = this.run?.rows[0];
    const asked =
      row && this.run.key === keyOf(this.setup)
        ? this.run.columns.map((_, c) => curl("POST", PATH, this.run.body(c, 0)))
        : [];
    const soft = [
      ...new Set(columns.filter((column) => column.kind === "soft").map((column) => cliName(column, this.models))),
    ];
    const text = columns.find((column) => column.kind === "text" && column.text.trim());
    const instruction = text ? ` --text-prompt ${quoted(text.text)}` : "";
    const scored = `softprompt eval ${quoted(soft.join(","))} --data rows.jsonl --shots 0 --limit ${numbers.limit} --max-new-tokens ${numbers.max_tokens}`;
    return { curl: [content, ...asked].join("\n"), cli: soft.length ? scored + instruction : "" };
  }

  // Runs

  /** Go on with what was kept of this setup, as after a reload. */
  async resume() {
    const store = new AnswerStore(keyOf(this.setup), () => this.full());
    if (!this.setup.file || !store.isKept()) return;
    const rows = await this.load();
    if (!rows) return;
    const kept = store.load(this.setup.columns.length, rows.length);
    this.show(rows, store, kept.cells);
    if (kept.isRunning) this.go();
  }

  /** Start, or continue what is open. */
  async begin() {
    const hadFocus = document.activeElement === this.start;
    const isOpen = this.run?.key === keyOf(this.setup) && this.run.open();
    if (!isOpen) {
      const rows = await this.load();
      if (!rows) return;
      const store = new AnswerStore(keyOf(this.setup), () => this.full());
      this.show(rows, store, store.begin(this.setup.columns.length, rows.length));
    }
    this.go(hadFocus);
  }

  repeat() {
    const { cells } = this.run;
    cells.forEach((column, c) => column.forEach((cell, i) => cell?.error && this.run.store.put(c, i, undefined)));
    this.go();
  }

  /** The rows of the file; null where they cannot be read, which is then said. */
  async load() {
    const { api, signal } = this.context;
    const { file, numbers } = this.setup;
    const rows = [];
    this.isLoading = true;
    this.update();
    fill(this.problem);
    try {
      for (let more = true; more && rows.length < numbers.limit;) {
        const limit = Math.min(ROWS_AT_ONCE, numbers.limit - rows.length);
        const page = await api.get(`/v1/files/${encodeURIComponent(file)}/rows?after=${rows.length}&limit=${limit}`, {
          signal,
        });
        rows.push(...page.data);
        more = page.has_more;
      }
      return rows;
    } catch (error) {
      if (!signal.aborted) fill(this.problem, errorNotice(error));
      return null;
    } finally {
      this.isLoading = false;
      if (!signal.aborted) this.update();
    }
  }

  /** Put a run on the page. */
  show(rows, store, cells) {
    const columns = structuredClone(this.setup.columns);
    const sampling = samplingOf(this.setup);
    const choices = this.setup.answers === "auto" ? choicesFor(rows) : null;
    const titles = titlesOf(columns);
    const body = (c, i) => cellBody(columns[c], this.models, rows[i], sampling, choices && choices[i]);
    const open = () => cells.reduce((sum, column) => sum + column.filter((cell) => !cell).length, 0);
    const failed = () => cells.reduce((sum, column) => sum + column.filter((cell) => cell?.error).length, 0);
    this.run = {
      key: keyOf(this.setup),
      rows,
      columns,
      cells,
      store,
      body,
      open,
      failed,
      evaluation: null,
      isAway: false,
    };
    const onFilter = (filter, search) => {
      this.shown = { filter, search };
      this.link();
    };
    this.table = new Results({
      rows,
      columns,
      titles,
      cells,
      ...this.shown,
      onFilter,
      announce: this.context.announce,
    });
    fill(this.results, notes(rows, choices), this.table.element);
    this.update();
  }

  async go(hadFocus = false) {
    const { run } = this;
    const { rows, columns, store } = run;
    const evaluation = new Evaluation({
      api: this.context.api,
      body: run.body,
      isDone: (c, i) => Boolean(run.cells[c][i]),
      onCell: (c, i, cell) => this.answered(run, c, i, cell),
      onAway: (isAway) => this.away(run, isAway),
      size: { columns: columns.length, rows: rows.length, concurrency: this.setup.numbers.concurrency },
    });
    run.evaluation = evaluation;
    store.setRunning(true, location.hash);
    this.update();
    if (hadFocus) this.halt.focus(); // the button that had it is disabled now
    const isWhole = await evaluation.run();
    if (this.context.signal.aborted) return;
    run.evaluation = null;
    store.setRunning(false, location.hash);
    this.table.choose();
    passOn(this.halt, this.start);
    this.update();
    this.context.announce(isWhole ? "The evaluation has ended." : "The evaluation is stopped.");
  }

  answered(run, c, i, cell) {
    run.store.put(c, i, cell);
    this.table.changed(c, i);
    this.due ??= setTimeout(() => {
      this.due = null;
      if (!this.context.signal.aborted) this.update();
    }, 100);
  }

  away(run, isAway) {
    if (run.isAway === isAway) return;
    run.isAway = isAway;
    this.update();
  }

  stop() {
    this.run?.evaluation?.stop();
  }

  /** The view is left: what runs goes on when it is shown again. */
  leave() {
    this.run?.store.flush();
    this.stop();
  }

  full() {
    fill(
      this.problem,
      h("p", { class: "notice warn" }, "This tab keeps no more answers over a reload: export them before you leave."),
    );
  }
}

function statusOf(run, done, total) {
  const count = `${done.toLocaleString("en")} of ${total.toLocaleString("en")} answers`;
  if (run.isAway && run.evaluation) return `${count}; the server does not answer, the run waits for it`;
  return run.evaluation ? `${count} …` : count;
}

function notes(rows, choices) {
  const without = rows.filter((row) => !row.references.length).length;
  const tools = rows.filter((row) => row.tools).length;
  const parts = [
    choices
      ? "Answers are held to the labels of the file."
      : "An answer is right if it equals the right one of its row, but for space at its ends.",
    without ? ` ${without} rows have no right answer; they are answered and not scored.` : "",
    tools ? ` ${tools} rows call functions, which are not asked for here.` : "",
  ];
  return h("p", { class: "hint" }, parts);
}

function nothingYet() {
  return empty(
    "Nothing is evaluated yet",
    h("p", null, "Choose or upload a file of rows with right answers, choose the columns, and start."),
  );
}
