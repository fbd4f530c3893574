// @ts-check
/** What outlives a reload of this tab: drafts in sessionStorage. What makes a link stands in the hash instead. */

const PREFIX = "softprompt-draft-";

/**
 * The draft of this name, or the fallback.
 * @template T
 * @param {string} name
 * @param {T} fallback
 * @returns {T}
 */
export function draft(name, fallback) {
  try {
    const text = sessionStorage.getItem(PREFIX + name);
    return text === null ? fallback : JSON.parse(text);
  } catch {
    return fallback;
  }
}

/** Keep a draft; undefined forgets it. A full storage keeps nothing, and nothing fails. @param {string} name @param {any} value */
export function keepDraft(name, value) {
  try {
    if (value === undefined) sessionStorage.removeItem(PREFIX + name);
    else sessionStorage.setItem(PREFIX + name, JSON.stringify(value));
  } catch {
    // the draft is lost on a reload, as it would be without a storage
  }
}

const KEY = "softprompt-key";

/** The API key of this tab, "" without one. It is never anywhere else. */
export function apiKey() {
  return sessionStorage.getItem(KEY) ?? "";
}

/** Keep or forget the API key of this tab. @param {string} key */
export function keepApiKey(key) {
  if (key) sessionStorage.setItem(KEY, key);
  else sessionStorage.removeItem(KEY);
}
