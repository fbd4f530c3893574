// @ts-check
/** The views, in the order of the navigation. */

import { view as compare } from "./compare.js";
import { view as distill } from "./distill.js";
import { view as evaluate } from "./evaluate.js";
import { view as inspect } from "./inspect.js";
import { view as prompts } from "./prompts.js";
import { view as train } from "./train.js";

/**
 * @typedef {{
 *   api: typeof import("../lib/api.js").api,
 *   hash: URLSearchParams,
 *   setHash: (params: URLSearchParams) => void,
 *   announce: (text: string) => void,
 *   signal: AbortSignal,
 * }} Context `signal` aborts when the view is left
 * @typedef {{path: string, title: string, render: (root: any, context: Context) => void | Promise<void>}} View
 */

/** @type {View[]} */
export const views = [prompts, compare, evaluate, train, distill, inspect];
