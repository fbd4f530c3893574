// @ts-check
/** The server's public API. Errors are in its own words; a server that is away is noticed once, and its return, too. */

import { events } from "./sse.js";
import { apiKey } from "./state.js";

/** An error of the API, or `server_away`. */
export class ApiError extends Error {
  /** @param {number} status @param {{message?: string, code?: string | null, param?: string | null}} error */
  constructor(status, error) {
    super(error.message || `The server answered with status ${status}.`);
    this.name = "ApiError";
    this.status = status;
    this.code = error.code ?? "";
    this.param = error.param ?? "";
  }
}

const ROOT = new URL("../", document.baseURI); // of the server, also behind a proxy's prefix
const AWAY = { code: "server_away", message: "The server does not answer." };
const FIRST_WAIT_MS = 500;
const LONGEST_WAIT_MS = 5000;

/** @type {Set<() => void>} */
const awayCallbacks = new Set();
/** @type {Set<() => void>} */
const backCallbacks = new Set();
let away = false;
/** @type {(message: string) => Promise<boolean>} */
let askForKey = async () => false;
/** @type {Promise<boolean> | null} */
let asking = null;

/** The address of an API path, such as "/v1/models". @param {string} path */
export function address(path) {
  return new URL(path.replace(/^\//, ""), ROOT).href;
}

function headers() {
  const key = apiKey();
  return key ? { Authorization: `Bearer ${key}` } : {};
}

/** @param {unknown} error @returns {ApiError | unknown} */
function lost(error) {
  if (error instanceof DOMException && error.name === "AbortError") return error;
  noticeAway();
  return new ApiError(0, AWAY);
}

function noticeAway() {
  if (away) return;
  away = true;
  awayCallbacks.forEach((callback) => callback());
  look(FIRST_WAIT_MS);
}

/** @param {number} wait */
function look(wait) {
  setTimeout(async () => {
    try {
      if (!(await fetch(address("/livez"), { cache: "no-store" })).ok) throw new Error("not yet");
      away = false;
      backCallbacks.forEach((callback) => callback());
    } catch {
      look(Math.min(wait * 2, LONGEST_WAIT_MS));
    }
  }, wait);
}

/** The API's error of a response. @param {Response} response */
async function errorOf(response) {
  const body = await response.json().catch(() => ({}));
  return new ApiError(response.status, body.error ?? {});
}

/** Ask for a key, in one dialog however many requests want it. @param {string} message */
function wantKey(message) {
  asking ??= askForKey(message).finally(() => { asking = null; });
  return asking;
}

/**
 * A response that is a success; asks for a key where the server wants one.
 * @param {string} method @param {string} path @param {{body?: any, signal?: AbortSignal}} [options]
 * @returns {Promise<Response>}
 */
async function send(method, path, { body, signal } = {}) {
  const sent = { method, signal, headers: { ...headers() }, cache: /** @type {const} */ ("no-store") };
  if (body !== undefined) Object.assign(sent, { body: JSON.stringify(body) });
  if (body !== undefined) Object.assign(sent.headers, { "Content-Type": "application/json" });
  const used = apiKey();
  let response;
  try {
    response = await fetch(address(path), sent);
  } catch (error) {
    throw lost(error);
  }
  if (response.ok) return response;
  const error = await errorOf(response);
  const again = error.status === 401 && (used !== apiKey() || (await wantKey(error.message)));
  if (again) return send(method, path, { body, signal });
  throw error;
}

/** @param {string} method @param {string} path @param {{body?: any, signal?: AbortSignal}} [options] */
async function json(method, path, options) {
  const response = await send(method, path, options);
  try {
    return await response.json();
  } catch (error) {
    throw lost(error);
  }
}

/** Send a file with progress. @param {File | Blob} file @param {string} purpose @param {(share: number) => void} [onProgress] @returns {Promise<any>} */
function upload(file, purpose, onProgress = () => {}) {
  const form = new FormData();
  form.append("purpose", purpose);
  form.append("file", file);
  const used = apiKey();
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    request.open("POST", address("/v1/files"));
    Object.entries(headers()).forEach(([name, value]) => request.setRequestHeader(name, value));
    request.upload.addEventListener("progress", (event) => onProgress(event.loaded / Math.max(1, event.total)));
    request.addEventListener("error", () => reject(lost(null)));
    request.addEventListener("load", async () => {
      let body = {};
      try { body = JSON.parse(request.responseText); } catch { /* not the API's */ }
      if (request.status === 200) return resolve(body);
      const error = new ApiError(request.status, body.error ?? {});
      const again = error.status === 401 && (used !== apiKey() || (await wantKey(error.message)));
      return again ? resolve(upload(file, purpose, onProgress)) : reject(error);
    });
    request.send(form);
  });
}

/**
 * Parsed events of a stream, until it ends. An error within it is thrown.
 * @param {string} path @param {any} [body] POSTed; GET without one
 * @param {{signal?: AbortSignal}} [options]
 * @returns {AsyncGenerator<any>}
 */
async function* stream(path, body, { signal } = {}) {
  const response = await send(body === undefined ? "GET" : "POST", path, { body, signal });
  try {
    for await (const event of events(response)) {
      if (event.error) throw new ApiError(response.status, event.error);
      yield event;
    }
  } catch (error) {
    throw error instanceof ApiError ? error : lost(error);
  }
}

/** Save a response as a file of the user. @param {string} path @param {string} filename */
async function download(path, filename) {
  const blob = await (await send("GET", path)).blob();
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = filename;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}

export const api = {
  /** @param {string} path @param {{signal?: AbortSignal}} [options] */
  get: (path, options) => json("GET", path, options),
  /** @param {string} path @param {any} [body] @param {{signal?: AbortSignal}} [options] */
  post: (path, body, options) => json("POST", path, { body, ...options }),
  /** @param {string} path @param {{signal?: AbortSignal}} [options] */
  delete: (path, options) => json("DELETE", path, options),
  /** The text of a response that is no JSON. @param {string} path @param {{signal?: AbortSignal}} [options] */
  text: async (path, options) => (await send("GET", path, options)).text(),
  upload,
  stream,
  download,
  /** @param {() => void} callback */
  onAway: (callback) => awayCallbacks.add(callback),
  /** Called when the server is back; views that lost something load it again. @param {() => void} callback @param {AbortSignal} [signal] forgets it */
  onBack: (callback, signal) => {
    backCallbacks.add(callback);
    signal?.addEventListener("abort", () => backCallbacks.delete(callback));
  },
  /** Set what asks for a key; it resolves to whether there is a new one. @param {(message: string) => Promise<boolean>} ask */
  onKeyNeeded: (ask) => { askForKey = ask; },
};
