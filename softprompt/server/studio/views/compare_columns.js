// @ts-check
/** Columns of Compare and Evaluate: what answers in each, and how a link names it. No page and no network. */

export const MOST_COLUMNS = 4;
export const BASE = "base";
export const TEXT = "text";
const SAMPLING = { temperature: 0, top_p: 1, max_tokens: 128, seed: 0 };

/**
 * What answers in a column: the base model, the base model with a text prompt, or a soft prompt.
 * @typedef {{kind: "base" | "text" | "soft", model: string, text: string, place: "system" | "front"}} Column
 * A row of GET /v1/models.
 * @typedef {{id: string, parent: string | null, root: string, form: string, n_tokens: number | null,
 *   fields: string[], kv_bytes_per_token: number}} Model
 * @typedef {{temperature: number, top_p: number, max_tokens: number, seed: number}} Sampling
 */

/** A column by its name in a link: "base", "text", or a soft prompt's. @returns {Column} */
export function columnOf(name, text = "", place = "system") {
  const kind = name === BASE || name === TEXT ? name : "soft";
  const isText = kind === "text";
  const where = isText && place === "front" ? "front" : "system";
  return { kind, model: kind === "soft" ? name : "", text: isText ? text : "", place: where };
}

/** A column's name in a link. */
export function nameOf(column) {
  return column.kind === "soft" ? column.model : column.kind;
}

/** The columns of a link; `texts` and `place` are those of its text prompts, in order. @returns {Column[]} */
export function readColumns(hash) {
  const texts = hash.getAll("text");
  const places = hash.getAll("place");
  const names = (hash.get("columns") ?? "").split(",").filter(Boolean).slice(0, MOST_COLUMNS);
  return names.map((written) => {
    const name = written.replaceAll("%2C", ",").replaceAll("%25", "%");
    return name === TEXT ? columnOf(name, texts.shift() ?? "", places.shift()) : columnOf(name);
  });
}

/** Put the columns into a link. */
export function writeColumns(columns, hash) {
  const names = columns.map((column) => nameOf(column).replaceAll("%", "%25").replaceAll(",", "%2C"));
  hash.set("columns", names.join(","));
  hash.delete("text");
  hash.delete("place");
  for (const column of columns.filter((one) => one.kind === "text")) {
    hash.append("text", column.text);
    hash.append("place", column.place);
  }
}

/** The columns that a view begins with: base, a text prompt and the newest soft prompt. @returns {Column[]} */
export function firstColumns(models) {
  const soft = softPrompts(models)[0];
  return [columnOf(BASE), ...(soft ? [columnOf(linkName(soft, models))] : [columnOf(TEXT)])];
}

/** The sampling of a link; what is no number there is the default. @returns {Sampling} */
export function readSampling(hash, defaults = {}) {
  const start = { ...SAMPLING, ...defaults };
  const read = Object.entries(start).map(([name, value]) => {
    const text = hash.get(name) ?? "";
    return [name, text.trim() !== "" && Number.isFinite(Number(text)) ? Number(text) : value];
  });
  return Object.fromEntries(read);
}

/** Put the sampling into a link. */
export function writeSampling(sampling, hash) {
  for (const [name, value] of Object.entries(sampling)) {
    hash.set(name, String(value));
  }
}

/** The row of the base model. @returns {Model | undefined} */
export function baseModel(models) {
  return models.find((model) => model.parent === null);
}

/** The rows of soft prompts and routers, the newest first. @returns {Model[]} */
export function softPrompts(models) {
  return models.filter((model) => model.parent !== null).sort((a, b) => b.created - a.created);
}

/** A soft prompt's name in links, where "base" and "text" have meanings of their own. */
export function linkName(model, models) {
  return model.id === BASE || model.id === TEXT ? `${baseModel(models)?.id}:${model.id}` : model.id;
}

/** The row of a column's model, also by its full name BASE:NAME; undefined where the server has none. */
export function modelOf(column, models) {
  const base = baseModel(models);
  if (column.kind !== "soft") {
    return base;
  }
  const short = base && column.model.startsWith(`${base.id}:`) ? column.model.slice(base.id.length + 1) : column.model;
  return (
    models.find((model) => model.id === column.model) ?? models.find((model) => model.parent && model.id === short)
  );
}

/** A column's heading. Columns of one kind are numbered by the caller. */
export function titleOf(column) {
  return { base: "Base model", text: "Text prompt", soft: column.model }[column.kind];
}

/** The headings of all columns, each of its own: a second text prompt is "Text prompt 2". @returns {string[]} */
export function titlesOf(columns) {
  const seen = new Map();
  return columns.map((column) => {
    const title = titleOf(column);
    seen.set(title, (seen.get(title) ?? 0) + 1);
    return seen.get(title) === 1 ? title : `${title} ${seen.get(title)}`;
  });
}
