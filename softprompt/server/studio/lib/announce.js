// @ts-check
/** One polite live region of the page. */

/** Say it to screen readers, once. @param {string} text */
export function announce(text) {
  const region = document.getElementById("announcer");
  if (!region) return;
  region.textContent = "";
  setTimeout(() => { region.textContent = text; }, 50); // so that the same words are read again, too
}
