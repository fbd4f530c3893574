// @ts-check
/** Prompts: all soft prompts that this key may use; of one its card, learning curve, files, and its end. */

import { commands, curl, quoted } from "../lib/command.js";
import { curve } from "../lib/curve.js";
import { confirmed } from "../lib/dialog.js";
import { empty, errorNotice, field, fill, h } from "../lib/dom.js";
import { modelPath, shortName, shownDay, shownNumber, shownTime, wholeName } from "../lib/models.js";
import { table } from "../lib/table.js";

const PAGE = 100;
const TYPING_MS = 200; // after the last key, before the list is searched

export const view = {
  path: "prompts",
  title: "Prompts",
  /** @param {any} root @param {import("./index.js").Context} context */
  async render(root, context) {
    const shelf = new Shelf(root, context);
    context.api.onBack(() => shelf.load(), context.signal);
    await shelf.load();
  },
};

/** The list, and the prompt that is chosen in it. */
class Shelf {
  /** @param {any} root @param {import("./index.js").Context} context */
  constructor(root, context) {
    this.context = context;
    this.chosen = context.hash.get("name") ?? "";
    /** @type {any[]} */
    this.cards = [];
    this.hasMore = false;
    this.search = h("input", { type: "search", value: context.hash.get("search") ?? "", autocomplete: "off", spellcheck: "false" });
    this.count = h("span", { class: "hint", role: "status" });
    this.list = h("div", { class: "stack" });
    this.detail = h("div", { class: "stack" });
    this.listing = table({ caption: "Soft prompts", columns: this.columns(), rowClass: (card) => (card.id === this.chosen ? "chosen" : "") });
    this.more = h("button", { type: "button", onClick: () => this.loadMore() }, "Show more");
    this.toolbar = h("div", { class: "toolbar low" }, field("Search by name", this.search), this.count);
    fill(root, h("div", { class: "split" }, h("div", { class: "stack" }, this.toolbar, this.list), this.detail));
    let waiting = 0;
    this.search.addEventListener("input", () => {
      clearTimeout(waiting);
      waiting = window.setTimeout(() => this.load(), TYPING_MS);
    });
  }

  columns() {
    const choose = (/** @type {string} */ id) => (/** @type {Event} */ event) => {
      event.preventDefault();
      this.choose(id);
    };
    return [
      { key: "id", title: "Name", cell: (card) => [h("a", { href: `#/prompts?name=${encodeURIComponent(card.id)}`, "aria-current": card.id === this.chosen ? "true" : null, onClick: choose(card.id) }, shortName(card.id)), wholeName(card.id)] },
      { key: "method", title: "Method", cell: (card) => card.method || card.form },
      { key: "n_tokens", title: "Tokens", numeric: true, cell: (card) => card.n_tokens || "–" },
      { key: "created", title: "Made", cell: (card) => h("span", { class: "nowrap", title: shownTime(card.created) }, shownDay(card.created)) },
    ];
  }

  /** The path of a page of the list. @param {string} after */
  path(after) {
    const query = new URLSearchParams({ limit: String(PAGE) });
    if (this.search.value.trim()) query.set("search", this.search.value.trim());
    if (after) query.set("after", after);
    return `/v1/cards?${query}`;
  }

  /** Load the list from its beginning, and the chosen prompt. */
  async load() {
    const { api, signal } = this.context;
    this.keep();
    try {
      const page = await api.get(this.path(""), { signal });
      this.cards = page.data;
      this.hasMore = page.has_more;
    } catch (error) {
      if (!signal.aborted) fill(this.list, errorNotice(error));
      return;
    }
    this.draw();
    await this.show();
  }

  async loadMore() {
    try {
      const page = await this.context.api.get(this.path(this.cards[this.cards.length - 1].id), { signal: this.context.signal });
      this.cards = [...this.cards, ...page.data];
      this.hasMore = page.has_more;
    } catch (error) {
      this.list.append(errorNotice(error));
      return;
    }
    this.draw();
  }

  draw() {
    const { length } = this.cards;
    this.count.textContent = length ? `${length}${this.hasMore ? "+" : ""} ${length === 1 ? "prompt" : "prompts"}` : "";
    this.listing.update(this.cards);
    const nothing = this.search.value.trim()
      ? empty("No name has this in it", h("p", null, "Names are compared without regard to case."))
      : empty(
          "No soft prompts yet",
          h("p", null, "Train one on rows of your own, or distill a long text into a few virtual tokens."),
          h("div", { class: "actions" }, h("a", { class: "button primary", href: "#/train" }, "Train"), h("a", { class: "button", href: "#/distill" }, "Distill")),
          h("p", { class: "hint" }, "Soft prompts of this base model in the server's folder appear here, too."),
        );
    const request = commands({ curl: curl("GET", this.path("")), cli: "softprompt list" });
    fill(this.list, length ? [this.listing.element, this.hasMore && this.more, request] : nothing);
  }

  /** Keep search and choice in the address. */
  keep() {
    const params = new URLSearchParams();
    if (this.search.value.trim()) params.set("search", this.search.value.trim());
    if (this.chosen) params.set("name", this.chosen);
    this.context.setHash(params);
  }

  /** @param {string} id */
  async choose(id) {
    this.chosen = id;
    this.keep();
    this.draw();
    await this.show(true);
  }

  /** The chosen prompt's card. @param {boolean} [focused] whether its heading gets the focus */
  async show(focused) {
    const { api, signal } = this.context;
    if (!this.chosen) {
      const hint = h("p", { class: "hint" }, "Choose a soft prompt to see its card, learning curve and files.");
      fill(this.detail, this.cards.length ? h("section", { class: "card quiet-card" }, hint) : null);
      return;
    }
    const id = this.chosen;
    try {
      const card = await api.get(modelPath("cards", id), { signal });
      if (id !== this.chosen) return;
      fill(this.detail, cardOf(card, this.context, () => this.remove(card)));
      if (focused) this.detail.querySelector("h2")?.focus(); // which also brings it into view
      await Promise.all([this.drawCurve(card), this.drawReports(card)]);
    } catch (error) {
      if (!signal.aborted && id === this.chosen) fill(this.detail, errorNotice(error));
    }
  }

  /** @param {any} card */
  async drawCurve(card) {
    const place = this.detail.querySelector(".curve-place");
    const { data } = await this.context.api.get(modelPath("curves", card.id), { signal: this.context.signal });
    if (!data.length || !place) return fill(place, h("p", { class: "hint" }, "Its run is not here any more."));
    const series = ["Training loss", "Validation loss"];
    const drawn = curve({ title: "Learning curve (nats a token)", xLabel: "step", series, signal: this.context.signal });
    fill(place, drawn.element);
    return drawn.update(data.map((point) => point.step), ["train_loss", "valid_loss"].map((name) => data.map((point) => point[name])));
  }

  /** Links to the inspections of a prompt. @param {any} card */
  async drawReports(card) {
    const place = this.detail.querySelector(".report-place");
    if (!card.readable || !place) return;
    const { data } = await this.context.api.get("/v1/inspections?limit=100", { signal: this.context.signal }).catch(() => ({ data: [] }));
    const found = data.filter((each) => each.model === card.id && each.status === "succeeded");
    const links = found.slice(0, 5).map((each) => h("li", null, h("a", { href: `#/inspect?id=${each.id}` }, `Report of ${shownTime(each.finished_at)}`)));
    fill(place, links.length ? h("ul", null, links) : h("p", { class: "hint" }, "It was not inspected yet."));
  }

  /** @param {any} card */
  async remove(card) {
    const { api, announce, signal } = this.context;
    const text = "Its files are deleted on the server, and requests for it are refused. This cannot be undone.";
    if (!(await confirmed(`Delete ${shortName(card.id)}?`, text, "Delete"))) return;
    try {
      await api.delete(modelPath("models", card.id), { signal });
    } catch (error) {
      this.detail.prepend(errorNotice(error));
      return;
    }
    announce(`${shortName(card.id)} is deleted.`);
    this.chosen = "";
    await this.load();
    this.search.focus();
  }
}

/** @param {any} card @param {import("./index.js").Context} context @param {() => void} remove */
function cardOf(card, context, remove) {
  const name = shortName(card.id);
  const file = `${name.replaceAll(/[^A-Za-z0-9._-]/g, "-")}.zip`;
  const model = encodeURIComponent(card.id);
  const download = async () => {
    try {
      await context.api.download(modelPath("archives", card.id), file);
      context.announce(`${file} is saved.`);
    } catch (error) {
      box.prepend(errorNotice(error));
    }
  };
  const actions = [
    h("a", { class: "button primary", href: `#/compare?columns=${encodeURIComponent(`base,${card.id}`)}` }, "Compare"),
    card.readable && h("a", { class: "button", href: `#/inspect?model=${model}` }, "Inspect"),
    card.readable && h("button", { type: "button", onClick: download }, "Download"),
    card.deletable && h("button", { type: "button", class: "danger", onClick: remove }, "Delete…"),
  ];
  const box = h(
    "article",
    { class: "card", "aria-label": name },
    h("h2", { tabindex: "-1" }, name),
    name === card.id ? null : h("code", { class: "hint" }, card.id),
    h("div", { class: "actions" }, actions),
    facts(card),
    h("h3", null, "Training"),
    h("div", { class: "curve-place" }),
    card.readable ? [h("h3", null, "Inspections"), h("div", { class: "report-place" })] : null,
    card.card ? h("details", null, h("summary", null, "The whole card"), h("pre", { tabindex: "0" }, JSON.stringify(card.card, null, 2))) : null,
    commandsOf(card, file),
  );
  return box;
}

/** @param {any} card */
function facts(card) {
  const template = Object.entries(card.template).filter(([, value]) => typeof value === "string" && value && value !== "chat");
  const pairs = [
    ["Base model", card.base],
    ["Form", `${card.form}, ${card.n_tokens} virtual ${card.n_tokens === 1 ? "token" : "tokens"}`],
    ["Method", card.method],
    ["Made", shownTime(card.created)],
    ["Training rows", card.train_rows === null ? "" : shownNumber(card.train_rows)],
    ["Labels", card.labels.join(", ")],
    ...template.map(([key, value]) => [`Template: ${key}`, h("code", { class: "pre" }, value)]),
    ...Object.entries(card.metrics).map(([key, value]) => [sentence(key), shownNumber(value)]),
    ["License", card.license ?? ""],
    ["Job", card.job ? h("a", { href: `#/train?job=${encodeURIComponent(card.job)}` }, card.job) : ""],
    ["sha256", h("code", null, `${card.sha256.slice(0, 12)}…`)],
  ];
  return h("dl", { class: "facts" }, pairs.filter(([, value]) => value).map(([term, value]) => [h("dt", null, term), h("dd", null, value)]));
}

/** A name of a number as words. @param {string} key */
function sentence(key) {
  return key.charAt(0).toUpperCase() + key.slice(1).replaceAll("_", " ");
}

/** @param {any} card @param {string} file */
function commandsOf(card, file) {
  const shown = card.readable
    ? curl("GET", modelPath("archives", card.id), undefined, ["-o", quoted(file)])
    : curl("GET", modelPath("cards", card.id));
  return commands({ curl: shown, cli: card.job ? `softprompt jobs show ${quoted(card.job)}` : `softprompt show ${quoted(card.id)}` });
}
