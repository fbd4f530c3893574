// @ts-check
/** Names of models: what requests call them, and what people call them. */

import { h } from "./dom.js";

/** The path of a model's resource, e.g. `/v1/cards/…`. @param {string} family @param {string} id */
export function modelPath(family, id) {
  return `/v1/${family}/${id.split("/").map(encodeURIComponent).join("/")}`;
}

/** The short name of ft:BASE:SUFFIX:ID is SUFFIX, or ID without one; other names are short. @param {string} id */
export function shortName(id) {
  const checkpoint = /:ckpt-step-(\d+)$/.exec(id);
  const parts = id.replace(/:ckpt-step-\d+$/, "").split(":");
  if (parts[0] !== "ft" || parts.length < 4) return id;
  const name = parts[parts.length - 2] || parts[parts.length - 1];
  return checkpoint ? `${name} at step ${checkpoint[1]}` : name;
}

/** The whole name, small, below a short one that differs. @param {string} id */
export function wholeName(id) {
  return shortName(id) === id ? null : h("small", { class: "mono below" }, id);
}

/** A day, as this browser writes it. @param {number} seconds since 1970 */
export function shownDay(seconds) {
  return new Date(seconds * 1000).toLocaleDateString(undefined, { dateStyle: "medium" });
}

/** A day and a time, as this browser writes them. @param {number} seconds since 1970 */
export function shownTime(seconds) {
  return new Date(seconds * 1000).toLocaleString(undefined, { dateStyle: "medium", timeStyle: "short" });
}

/** A number with few digits. @param {number} value */
export function shownNumber(value) {
  if (Number.isInteger(value)) return value.toLocaleString();
  return Math.abs(value) >= 1000 || Math.abs(value) < 0.001 ? value.toPrecision(3) : String(Number(value.toPrecision(4)));
}
