// @ts-check
/** Inspect: have a worker read a soft prompt, and show its report. */

import { commands, curl, quoted } from "../lib/command.js";
import { confirmed } from "../lib/dialog.js";
import { empty, errorNotice, field, fill, h } from "../lib/dom.js";
import { shortName, shownDay, shownTime, wholeName } from "../lib/models.js";
import { table } from "../lib/table.js";

const POLL_MS = 1000;
const READINGS = [
  ["behavior", "changed predictions"],
  ["nearest", "words near the virtual tokens"],
  ["drift", "where they lie"],
  ["worth", "the share of each virtual token"],
  ["layers", "what is lost when layers do not see them"],
  ["heads", "the same of attention heads"],
  ["attention", "which layers look at them"],
  ["lens", "what the model would predict from them"],
  ["leak", "what it repeats of its text"],
];
const ENDED = new Set(["succeeded", "failed", "cancelled"]);
const STYLES = { succeeded: "good", failed: "bad", running: "accent" };

export const view = {
  path: "inspect",
  title: "Inspect",
  /** @param {any} root @param {import("./index.js").Context} context */
  async render(root, context) {
    const desk = new Desk(root, context);
    context.api.onBack(() => desk.load(), context.signal);
    await desk.load();
  },
};

/** The form, the inspections made so far, and the report of the chosen one. */
class Desk {
  /** @param {any} root @param {import("./index.js").Context} context */
  constructor(root, context) {
    this.context = context;
    this.chosen = context.hash.get("id") ?? "";
    /** @type {any[]} */
    this.inspections = [];
    /** @type {{id: string, status: string}} */
    this.shown = { id: "", status: "" };
    this.polling = 0;
    this.form = h("div", { class: "stack" });
    this.list = h("div", { class: "stack" });
    this.report = h("div", { class: "stack" });
    this.listing = table({ caption: "Inspections", columns: this.columns(), rowHeader: "model", rowClass: (each) => (each.id === this.chosen ? "chosen" : "") });
    fill(root, h("div", { class: "grid" }, this.form, this.list), this.report);
    context.signal.addEventListener("abort", () => clearTimeout(this.polling));
  }

  columns() {
    const choose = (/** @type {string} */ id) => (/** @type {Event} */ event) => {
      event.preventDefault();
      this.choose(id);
    };
    return [
      { key: "model", title: "Soft prompt", cell: (each) => [h("a", { href: `#/inspect?id=${each.id}`, onClick: choose(each.id) }, shortName(each.model)), wholeName(each.model)] },
      { key: "status", title: "Status", cell: (each) => h("span", { class: `badge ${STYLES[each.status] ?? ""}` }, each.status) },
      { key: "created_at", title: "Started", cell: (each) => h("span", { class: "nowrap", title: shownTime(each.created_at) }, shownDay(each.created_at)) },
    ];
  }

  /** Load prompts, files and inspections. */
  async load() {
    const { api, signal } = this.context;
    try {
      const [cards, files] = await Promise.all([
        api.get("/v1/cards?limit=100", { signal }),
        api.get("/v1/files?purpose=fine-tune&limit=100", { signal }),
      ]);
      this.drawForm(cards.data.filter((card) => card.readable), files.data);
      await this.refresh();
    } catch (error) {
      if (!signal.aborted) fill(this.form, errorNotice(error));
    }
  }

  /** Load the inspections, now and as long as one is unfinished. */
  async refresh() {
    const { api, signal } = this.context;
    clearTimeout(this.polling);
    try {
      this.inspections = (await api.get("/v1/inspections?limit=50", { signal })).data;
      this.listing.update(this.inspections);
      fill(this.list, this.inspections.length ? this.listing.element : null);
      await this.show();
    } catch (error) {
      if (error.code !== "server_away") throw error; // else the banner says it, and its return loads again
      return;
    }
    if (this.inspections.some((each) => !ENDED.has(each.status)) && !signal.aborted) {
      this.polling = window.setTimeout(() => this.refresh().catch((error) => fill(this.list, errorNotice(error))), POLL_MS);
    }
  }

  /** @param {any[]} cards @param {any[]} files */
  drawForm(cards, files) {
    if (!cards.length) {
      fill(
        this.form,
        empty(
          "Nothing to inspect yet",
          h("p", null, "Inspections read the soft prompts that this key owns. Train or distill one first."),
          h("div", { class: "actions" }, h("a", { class: "button primary", href: "#/train" }, "Train"), h("a", { class: "button", href: "#/distill" }, "Distill")),
        ),
      );
      return;
    }
    const rows = files.filter((file) => !/\.(txt|md)$/i.test(file.filename));
    const model = h("select", { value: this.context.hash.get("model") ?? cards[0].id }, cards.map((card) => h("option", { value: card.id }, shortName(card.id))));
    if (!model.value) model.value = cards[0].id;
    const file = h("select", null, h("option", { value: "" }, "Its own held-out rows, or neutral texts"), rows.map((each) => h("option", { value: each.id }, `${each.filename} (${each.id})`)));
    const boxes = READINGS.map(([name, words]) => h("label", { class: "choice" }, h("input", { type: "checkbox", checked: true, value: name }), h("span", null, name, h("small", { class: "below" }, words))));
    const help = h("div");
    const body = () => {
      const wanted = boxes.map((box) => box.querySelector("input")).filter((input) => input.checked).map((input) => input.value);
      const sections = wanted.length === READINGS.length ? {} : { sections: wanted };
      return { model: model.value, ...(file.value ? { file: file.value } : {}), ...sections };
    };
    const start = h("button", { class: "primary" }, "Inspect");
    const problem = h("div");
    const form = h(
      "form",
      { class: "card", "aria-label": "New inspection" },
      h("h2", null, "Read a soft prompt"),
      field("Soft prompt", model),
      field("Rows with answers", file, "Readings say which share of the prompt's effect on these rows they recover."),
      h("details", null, h("summary", null, "Readings"), h("fieldset", { class: "choices" }, h("legend", null, "Readings to make"), boxes)),
      problem,
      h("div", { class: "actions" }, start),
      help,
    );
    const update = () => {
      const sent = body();
      start.disabled = sent.sections?.length === 0;
      fill(help, commandsOf(sent));
    };
    form.addEventListener("change", update);
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.start(body(), problem);
    });
    update();
    fill(this.form, form);
  }

  /** @param {any} body @param {any} problem where an error is shown */
  async start(body, problem) {
    fill(problem);
    try {
      const made = await this.context.api.post("/v1/inspections", body);
      this.context.announce("The inspection waits for a worker.");
      await this.choose(made.id);
    } catch (error) {
      fill(problem, errorNotice(error));
    }
  }

  /** @param {string} id */
  async choose(id) {
    this.chosen = id;
    this.context.setHash(new URLSearchParams({ id }));
    await this.refresh();
    this.report.querySelector("h2")?.focus();
  }

  /** The chosen inspection: how far it is, or its report. */
  async show() {
    const { api, announce, signal } = this.context;
    if (!this.chosen) {
      fill(this.report, this.inspections.length ? h("p", { class: "hint" }, "Choose an inspection to see its report.") : null);
      return;
    }
    const id = this.chosen;
    let found;
    try {
      found = this.inspections.find((each) => each.id === id) ?? (await api.get(`/v1/inspections/${encodeURIComponent(id)}`, { signal }));
    } catch (error) {
      if (error.code === "server_away") throw error;
      fill(this.report, errorNotice(error));
      return;
    }
    const state = `${found.status} ${found.section ?? ""}`;
    if (this.shown.id === id && this.shown.status === state) return;
    const was = this.shown;
    this.shown = { id, status: state };
    const head = h("div", { class: "toolbar" }, h("h2", { tabindex: "-1", class: "stretch" }, shortName(found.model)), this.buttons(found));
    if (found.status !== "succeeded") {
      fill(this.report, head, progressOf(found));
      return;
    }
    const text = await api.text(`/v1/inspections/${id}/report`, { signal });
    if (this.chosen !== id) return;
    // The report is a page of its own, without an origin: it can reach nothing here, and only its own script runs.
    const frame = h("iframe", { class: "report-frame", sandbox: "allow-scripts", title: `Report of ${shortName(found.model)}` });
    // A blob and not srcdoc, whose links to its own headings would lead to this page's address.
    const source = URL.createObjectURL(new Blob([text], { type: "text/html;charset=utf-8" }));
    frame.addEventListener("load", () => URL.revokeObjectURL(source), { once: true });
    frame.src = source;
    fill(this.report, head, frame);
    if (was.id === id) announce("The report is ready.");
  }

  /** @param {any} found */
  buttons(found) {
    const { api } = this.context;
    const path = `/v1/inspections/${found.id}`;
    const stem = shortName(found.model).replaceAll(/[^A-Za-z0-9._-]/g, "-");
    const done = found.status === "succeeded";
    return [
      done && h("button", { type: "button", onClick: () => api.download(`${path}/report`, `${stem}.inspect.html`) }, "Download page"),
      done && h("button", { type: "button", onClick: () => api.download(`${path}/result`, `${stem}.inspect.json`) }, "Download numbers"),
      h("button", { type: "button", class: "danger", onClick: () => this.remove(found) }, ENDED.has(found.status) ? "Delete…" : "Cancel…"),
    ];
  }

  /** @param {any} found */
  async remove(found) {
    const ended = ENDED.has(found.status);
    const text = ended ? "The report is deleted on the server; the soft prompt stays." : "The worker ends it at its next reading.";
    if (!(await confirmed(ended ? "Delete this inspection?" : "Cancel this inspection?", text, ended ? "Delete" : "Cancel it"))) return;
    try {
      await this.context.api.delete(`/v1/inspections/${found.id}`);
    } catch (error) {
      this.report.prepend(errorNotice(error));
      return;
    }
    this.chosen = "";
    this.shown = { id: "", status: "" };
    this.context.setHash(new URLSearchParams());
    this.context.announce("It is deleted.");
    await this.refresh();
  }
}

/** @param {any} found */
function progressOf(found) {
  if (found.status === "failed") return errorNotice(found.error ?? { message: "It failed." });
  const words = found.status === "running" ? `A worker is at: ${found.section ?? "predictions"}` : "It waits for a worker. A worker does one thing at a time.";
  return h("div", { class: "card" }, h("p", null, words), h("progress", { "aria-label": "The inspection runs" }));
}

/** @param {any} body */
function commandsOf(body) {
  const only = body.sections ? ` --only ${body.sections.join(",")}` : "";
  const rows = body.file ? " --data rows.jsonl" : "";
  return commands({
    curl: curl("POST", "/v1/inspections", body),
    cli: `softprompt inspect ${quoted(shortName(body.model))}${rows}${only} --html`,
  });
}
