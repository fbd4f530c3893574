// @ts-check
/** Elements made from plain data. Strings become text nodes, so no text of a user is ever read as HTML. */

/**
 * An element.
 * @param {string} tag
 * @param {Record<string, any> | null} [props] `class`, `dataset`, `on…` functions as listeners, attributes by their names
 *   (true is an empty one; false, null and undefined are none), and the properties value, checked, selected, disabled.
 * @param {...any} children nodes, strings, numbers, and arrays of them; null, undefined and false are left out
 * @returns {any}
 */
export function h(tag, props, ...children) {
  const element = document.createElement(tag);
  const late = [];
  for (const [name, value] of Object.entries(props ?? {})) {
    if (PROPERTIES.has(name)) late.push([name, value]);
    else set(element, name, value);
  }
  append(element, children);
  for (const [name, value] of late) element[name] = value; // a select's value needs its options
  return element;
}

const PROPERTIES = new Set(["value", "checked", "selected", "disabled", "indeterminate"]);

/** @param {any} element @param {string} name @param {any} value */
function set(element, name, value) {
  if (name.startsWith("on") && typeof value === "function") {
    element.addEventListener(name.slice(2).toLowerCase(), value);
  } else if (name === "dataset") {
    Object.assign(element.dataset, value);
  } else if (name === "style") {
    throw new TypeError("styles are classes of studio.css, or element.style.setProperty");
  } else if (value !== null && value !== undefined && value !== false) {
    element.setAttribute(name, value === true ? "" : String(value));
  }
}

/**
 * Append children; returns the element.
 * @param {any} element
 * @param {any[]} children
 */
export function append(element, children) {
  for (const child of children.flat(Infinity)) {
    if (child !== null && child !== undefined && child !== false) {
      element.append(child instanceof Node ? child : String(child));
    }
  }
  return element;
}

/**
 * Replace everything in an element.
 * @param {any} element
 * @param {...any} children
 */
export function fill(element, ...children) {
  element.replaceChildren();
  return append(element, children);
}

let serial = 0;

/** An id that is used once in the page, for labels and descriptions. @param {string} [stem] */
export function uniqueId(stem = "id") {
  serial += 1;
  return `${stem}-${serial}`;
}

/**
 * A labeled form control; `hint` is read with it.
 * @param {string} label
 * @param {any} control an input, select or textarea
 * @param {string} [hint]
 */
export function field(label, control, hint) {
  control.id ||= uniqueId("field");
  const parts = [h("label", { for: control.id }, label), control];
  if (hint) {
    const id = uniqueId("hint");
    control.setAttribute("aria-describedby", id);
    parts.push(h("small", { class: "hint", id }, hint));
  }
  return h("div", { class: "field" }, parts);
}

/**
 * What a view shows where there is nothing yet: a title, what to do, and perhaps buttons or links.
 * @param {string} title
 * @param {...any} children
 */
export function empty(title, ...children) {
  return h("section", { class: "empty" }, h("h2", null, title), children);
}

/**
 * An error in the words of the API, as an alert.
 * @param {any} error
 */
export function errorNotice(error) {
  const param = error.param ? h("code", null, error.param) : null;
  return h("p", { class: "notice bad", role: "alert" }, error.message, param && [" ", param]);
}
