"use strict";
// A button under each table that copies it as tab-separated values, numbers in full. Nothing else here is scripted but
// links within the page, where it stands in a frame without an address of its own, which they would leave.
if (window !== window.top) {
  document.addEventListener("click", (event) => {
    const link = event.target.closest("a[href^='#']");
    if (link === null) return;
    event.preventDefault();
    document.getElementById(link.getAttribute("href").slice(1))?.scrollIntoView();
  });
}
for (const scroll of document.querySelectorAll(".scroll")) {
  const table = scroll.querySelector("table");
  const button = document.createElement("button");
  button.type = "button";
  button.className = "copy";
  button.textContent = "Copy table";
  button.setAttribute("aria-label", "Copy table: " + scroll.getAttribute("aria-label"));
  button.addEventListener("click", async () => {
    const rows = Array.from(table.rows, (row) =>
      Array.from(row.cells, (cell) => cell.dataset.value ?? cell.textContent.trim().replace(/\s+/g, " ")).join("\t"));
    try {
      await navigator.clipboard.writeText(rows.join("\n") + "\n");
      button.textContent = "Copied";
    } catch {
      getSelection().selectAllChildren(table);
      button.textContent = "Selected: press Ctrl+C";
    }
  });
  scroll.after(button);
}
