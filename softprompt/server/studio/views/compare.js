// @ts-check
/** Compare: one conversation, up to four columns that answer it side by side with the same seed and sampling. */

import { commands, curl } from "../lib/command.js";
import { field, fill, h } from "../lib/dom.js";
import { draft, keepDraft } from "../lib/state.js";
import { tokenLegend } from "../lib/tokens.js";
import { AnswerColumn } from "./compare_answer.js";
import {
  firstColumns,
  modelOf,
  readColumns,
  readSampling,
  softPrompts,
  titlesOf,
  writeColumns,
  writeSampling,
} from "./compare_columns.js";
import { columnPicker, drawOnce } from "./compare_picker.js";
import { conversation, generateLine, streamBody } from "./compare_request.js";
import { newAnswer, readAnswer } from "./compare_stream.js";

const PATH = "/v1/chat/completions";
const FIELDS = {
  temperature: ["Temperature", { min: "0", max: "2", step: "0.1" }, "0 is the likeliest answer"],
  top_p: ["Top-p", { min: "0.01", max: "1", step: "0.01" }, ""],
  max_tokens: ["Longest answer in tokens", { min: "1", step: "1" }, ""],
  seed: ["Seed", { step: "1" }, "the same for all columns"],
};

export const view = {
  path: "compare",
  title: "Compare",
  /** @param {any} root @param {any} context */
  async render(root, context) {
    await drawOnce(context, (models) => new ComparePage(root, context, models).draw());
  },
};

/** The view and what it holds: columns, the user's turns, and for each column its answers and card. */
class ComparePage {
  constructor(root, context, models) {
    this.root = root;
    this.context = context;
    this.models = models;
    const linked = readColumns(context.hash);
    this.columns = linked.length ? linked : firstColumns(models);
    this.sampling = readSampling(context.hash);
    this.turns = context.hash.getAll("prompt");
    /** @type {Map<any, {answers: any[], control: AbortController | null, card: AnswerColumn}>} */
    this.parts = new Map();
    context.signal.addEventListener("abort", () => this.stop());
  }

  // The page

  draw() {
    const typed = () => {
      keepDraft("compare-text", this.input.value);
      this.update();
    };
    this.input = h("textarea", {
      rows: "3",
      value: draft("compare-text", ""),
      onInput: typed,
      onKeydown: (event) => this.key(event),
    });
    this.send = h("button", { type: "submit", class: "primary" }, "Send");
    this.halt = h("button", { type: "button", onClick: () => this.stop() }, "Stop all");
    this.anew = h("button", { type: "button", onClick: () => this.begin() }, "New conversation");
    this.grid = h("div", { class: "compare-columns" });
    this.commands = h("div", { class: "command-lines" });
    const submit = (/** @type {Event} */ event) => {
      event.preventDefault();
      this.run();
    };
    const copy = h("button", { type: "button", class: "quiet", onClick: () => this.copyLink() }, "Copy the link");
    const form = h(
      "form",
      { class: "card", onSubmit: submit },
      columnPicker(this.models, this.columns, (column) => this.changeColumns(column)),
      h("details", { class: "sampling" }, h("summary", null, "Sampling"), this.samplingFields()),
      field("Your turn", this.input, "Ctrl+Enter sends it to every column"),
      h("div", { class: "actions" }, this.send, this.halt, this.anew, h("span", { class: "stretch" }), copy),
      this.commands,
    );
    fill(this.root, softPrompts(this.models).length ? null : missing(), form, this.grid, tokenLegend());
    this.drawColumns(this.restored());
    this.update();
  }

  samplingFields() {
    const fields = Object.entries(FIELDS).map(([name, [label, limits, hint]]) => {
      const changed = (/** @type {any} */ event) => {
        const hash = new URLSearchParams({ [name]: event.target.value });
        this.sampling[name] = readSampling(hash)[name];
        event.target.value = this.sampling[name];
        this.columns.forEach((column) => this.forget(column));
        this.update();
      };
      return field(
        label,
        h("input", { type: "number", inputmode: "decimal", ...limits, value: this.sampling[name], onChange: changed }),
        hint,
      );
    });
    return h("div", { class: "grid settings" }, fields);
  }

  /** A card for each column; those that were there stay, also while they stream. @param {any[][]} answers of new ones */
  drawColumns(answers = []) {
    const titles = titlesOf(this.columns);
    for (const [column, part] of this.parts) {
      if (!this.columns.includes(column)) {
        part.control?.abort();
        this.parts.delete(column);
      }
    }
    this.columns.forEach((column, i) => {
      if (!this.parts.has(column)) {
        const options = {
          model: modelOf(column, this.models),
          onStop: () => this.part(column).control?.abort(),
          onRetry: () => this.retry(column),
        };
        this.parts.set(column, { answers: answers[i] ?? [], control: null, card: new AnswerColumn(options) });
        this.show(column);
      }
      this.part(column).card.rename(titles[i]);
    });
    fill(
      this.grid,
      this.columns.map((column) => this.part(column).card.element),
    );
  }

  /** What follows from the state: the link, the buttons and the commands. */
  update() {
    if (this.context.signal.aborted) return;
    const isOpen = this.columns.some((column) => !this.isAnswered(column));
    const isBusy = this.columns.some((column) => this.part(column).control);
    const hasText = Boolean(this.input.value.trim());
    this.send.textContent = !hasText && this.turns.length && isOpen && !isBusy ? "Run" : "Send";
    this.send.disabled = isBusy || !(hasText || (this.turns.length && isOpen));
    this.halt.disabled = !isBusy;
    this.anew.disabled = isBusy || !this.turns.length;
    const isShown = this.commands.querySelector("details")?.open;
    fill(this.commands, this.commandLines());
    if (isShown && this.commands.firstChild) this.commands.firstChild.open = true;
    const hash = new URLSearchParams();
    writeColumns(this.columns, hash);
    writeSampling(this.sampling, hash);
    this.turns.forEach((turn) => hash.append("prompt", turn));
    if (hash.toString() !== this.link) this.context.setHash(hash);
    this.link = hash.toString();
  }

  /** The commands of the turn that is being typed, or else of the last one. */
  commandLines() {
    const turns = [...this.turns, ...(this.input.value.trim() ? [this.input.value] : [])];
    if (!turns.length) return null;
    const given = this.columns.map((column) => conversation(turns, this.said(column).slice(0, turns.length - 1)));
    const lines = this.columns.map((column, i) =>
      curl("POST", PATH, streamBody(column, this.models, given[i], this.sampling), ["-N"]),
    );
    return commands({ curl: lines.join("\n"), cli: generateLine(this.columns, this.models, given, this.sampling) });
  }

  async copyLink() {
    try {
      await navigator.clipboard.writeText(location.href);
      this.context.announce("The link is copied.");
    } catch {
      this.context.announce("The address of this page is the link.");
    }
  }

  key(event) {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
      event.preventDefault();
      if (!this.send.disabled) this.run();
    }
  }

  // What it does

  /** A column's answers and card. */
  part(column) {
    return /** @type {any} */ (this.parts.get(column));
  }

  /** The texts of a column's answers. @returns {string[]} */
  said(column) {
    return this.part(column).answers.map((answer) => answer.text);
  }

  show(column) {
    const { card, answers } = this.part(column);
    card.show(this.turns, answers, column, this.models);
  }

  isAnswered(column) {
    return this.turns.every((_, k) => this.part(column).answers[k]?.state === "done");
  }

  /** Send what is typed to all columns, or let those answer that have not yet. */
  run() {
    const text = this.input.value;
    if (text.trim()) {
      this.turns.push(text);
      this.input.value = "";
      keepDraft("compare-text", undefined);
    }
    const open = this.columns.filter((column) => !this.isAnswered(column));
    const all = open.map((column) => this.runColumn(column));
    this.input.focus(); // the button is disabled until the answers are there
    this.update();
    Promise.all(all).then(() => {
      if (!this.context.signal.aborted) this.context.announce("All columns have ended.");
    });
  }

  /** Let a column answer all turns that it has not answered. Its errors stay its own. */
  async runColumn(column) {
    const part = this.part(column);
    const { answers, card } = part;
    const control = new AbortController();
    part.control = control;
    while (answers.length && answers[answers.length - 1].state !== "done") answers.pop();
    card.show(this.turns.slice(0, answers.length), answers, column, this.models);
    const turns = [...this.turns];
    for (let k = answers.length; k < turns.length; k += 1) {
      const answer = newAnswer();
      const body = streamBody(
        column,
        this.models,
        conversation(turns.slice(0, k + 1), this.said(column)),
        this.sampling,
      );
      const onPiece = card.begin(turns[k], k === 0);
      await readAnswer(
        this.context.api.stream(PATH, body, { signal: control.signal }),
        answer,
        onPiece,
        control.signal,
      );
      if (part.control !== control) return; // it was forgotten meanwhile
      answers.push(answer);
      this.keep();
      if (answer.state !== "done") break;
    }
    part.control = null;
    this.show(column);
    this.update();
  }

  /** Answer the last turn of a column again. */
  retry(column) {
    const { answers } = this.part(column);
    if (answers.length === this.turns.length) answers.pop();
    this.runColumn(column);
    this.update();
  }

  stop() {
    this.parts.forEach((part) => part.control?.abort());
  }

  /** Forget a column's answers, which belong to another text or other settings; the turns stay. */
  forget(column) {
    const part = this.part(column);
    part.control?.abort();
    part.control = null;
    part.answers = [];
    this.show(column);
    this.keep();
  }

  /** @param {any} column whose text became another; null: a column was added, removed or replaced */
  changeColumns(column) {
    if (column) this.forget(column);
    else this.drawColumns();
    this.update();
  }

  begin() {
    this.turns = [];
    this.columns.forEach((column) => this.forget(column));
    this.update();
    this.input.focus();
  }

  // Over a reload

  keep() {
    keepDraft("compare-answers", {
      of: this.identity(),
      answers: this.columns.map((column) => this.part(column).answers),
    });
  }

  /** What answers belong to: all but the turns after the first, which may have become more. */
  identity() {
    return JSON.stringify([this.columns, this.sampling, this.turns[0] ?? ""]);
  }

  /** The answers that were kept for this link. @returns {any[][]} */
  restored() {
    const kept = draft("compare-answers", null);
    return kept?.of === this.identity() ? kept.answers.map((answers) => answers.slice(0, this.turns.length)) : [];
  }
}

function missing() {
  return h(
    "p",
    { class: "notice" },
    "There are no soft prompts yet. ",
    h("a", { href: "#/train" }, "Train one on rows"),
    ", or ",
    h("a", { href: "#/distill" }, "distill a text"),
    "; until then the base model and a text prompt can be compared.",
  );
}
