"use strict";
// Sorting, searching, unfolding for print. The page says everything without it. It moves what is there and sets text,
// and never makes text into markup.
(() => {
  const UNITS = { min: 60, h: 3600, k: 1e3, M: 1e6, G: 1e9, T: 1e12, P: 1e15, KiB: 2 ** 10, MiB: 2 ** 20, GiB: 2 ** 30 };
  const WRITTEN = /^[≤≥<>≈\s]*(-?\d*\.?\d+ ?(%|s|min|h|[kMGTP]|[KMG]iB)?\s*)+$/;

  // What a cell is worth: its key, or a number that its text writes ("−1.2 [−2, 0]", "2 h 2 min", "51 %"); else NaN.
  const amount = (cell) => {
    if (cell.dataset.key !== undefined) return Number(cell.dataset.key);
    const text = cell.textContent.split("[")[0].replace(/−/g, "-").replace(/,/g, "").trim();
    if (!WRITTEN.test(text)) return NaN;
    return [...text.matchAll(/(-?\d*\.?\d+) ?([A-Za-z]*)/g)].reduce((sum, [, n, unit]) => sum + n * (UNITS[unit] ?? 1), 0);
  };
  const written = (cell) => cell.textContent.trim();
  const missing = (cell) => ["", "–", "not available"].includes(written(cell));

  // Numbers: the largest first; texts: from A; again: the other way. What is missing stays at the end.
  const sort = (table, place) => {
    const head = table.tHead.rows[0].cells[place];
    const rows = [...table.tBodies[0].rows];
    const there = rows.filter((row) => !missing(row.cells[place]));
    const numeric = there.every((row) => !Number.isNaN(amount(row.cells[place])));
    const first = numeric ? "descending" : "ascending";
    const way = head.getAttribute("aria-sort") !== first ? first : numeric ? "ascending" : "descending";
    for (const other of table.tHead.rows[0].cells) if (other.hasAttribute("aria-sort")) other.setAttribute("aria-sort", "none");
    head.setAttribute("aria-sort", way);
    there.sort((a, b) => {
      const [x, y] = [a.cells[place], b.cells[place]];
      const order = numeric ? amount(x) - amount(y) : written(x).localeCompare(written(y), undefined, { numeric: true });
      return way === "ascending" ? order : -order;
    });
    table.tBodies[0].append(...there, ...rows.filter((row) => missing(row.cells[place])));
  };

  for (const table of document.querySelectorAll("table:not(.rows)")) {
    if (!table.tHead || !table.tBodies[0] || table.tBodies[0].rows.length < 2) continue;
    if (table.querySelector("td[colspan]")) continue;
    [...table.tHead.rows[0].cells].forEach((head, place) => {
      if (!written(head)) return;
      const button = document.createElement("button");
      button.type = "button";
      button.title = "Sort";
      button.append(...head.childNodes);
      head.append(button);
      head.setAttribute("aria-sort", "none");
      button.addEventListener("click", () => sort(table, place));
    });
  }

  // One search over all galleries: a box at each, all saying the same.
  const boxes = [...document.querySelectorAll(".search")];
  const items = [...document.querySelectorAll(".sample")].map((item) => [item, item.textContent.toLowerCase()]);
  const search = (query) => {
    const words = query.toLowerCase().split(/\s+/).filter(Boolean);
    for (const [item, text] of items) item.hidden = !words.every((word) => text.includes(word));
    for (const fold of document.querySelectorAll("details.more")) fold.open = words.length > 0;
    for (const box of boxes) {
      const mine = [...box.parentElement.querySelectorAll(".sample")];
      box.querySelector("output").value = words.length ? `${mine.filter((item) => !item.hidden).length} of ${mine.length}` : "";
      if (box.querySelector("input").value !== query) box.querySelector("input").value = query;
    }
  };
  for (const box of boxes) {
    box.hidden = false;
    box.querySelector("input").addEventListener("input", (event) => search(event.target.value));
  }

  // Paper has no folds.
  let opened = [];
  addEventListener("beforeprint", () => {
    opened = [...document.querySelectorAll("details:not([open])")];
    for (const fold of opened) fold.open = true;
  });
  addEventListener("afterprint", () => {
    for (const fold of opened) fold.open = false;
  });
})();
