// Long tables can be sorted by a click on the head of a column, wide ones scroll within; heads say that they are heads. Nothing is stored, sent or loaded.
"use strict";

document.addEventListener("DOMContentLoaded", () => {
  const LONG = 6, WIDE = 6; // rows that are sorted, columns that need no scrolling

  // The number with which a cell begins; NaN without one.
  const number = (text) => parseFloat(text.trim().replace(/[\u2212\u2013]/g, "-").replace(/(\d)[\s\u202f\u00a0](?=\d{3}\b)/g, "$1"));
  const cell = (row, column) => row.cells[column].textContent.trim();
  const empty = (text) => ["", "-", "\u2013"].includes(text);

  function compare(a, b, numeric) {
    if (empty(a) || empty(b)) return empty(a) - empty(b);
    return numeric ? number(a) - number(b) : a.localeCompare(b, undefined, { numeric: true });
  }

  function sort(table, heads, column) {
    const body = table.tBodies[0], rows = [...body.rows], down = heads[column].getAttribute("aria-sort") === "ascending";
    const texts = rows.map((row) => cell(row, column)), numeric = texts.every((text) => empty(text) || !Number.isNaN(number(text)));
    const order = rows.map((row, i) => [row, texts[i]]);
    order.sort(([, a], [, b]) => (down && !empty(a) && !empty(b) ? -1 : 1) * compare(a, b, numeric));
    for (const head of heads) head.removeAttribute("aria-sort");
    heads[column].setAttribute("aria-sort", down ? "descending" : "ascending");
    body.append(...order.map(([row]) => row));
  }

  // Put a wide table into a box that scrolls, by keyboard too, unless it is in one.
  function box(table) {
    let outside = table.parentElement;
    while (outside && !["auto", "scroll"].includes(getComputedStyle(outside).overflowX)) outside = outside.parentElement;
    if (!outside || outside === document.body || outside === document.documentElement) {
      outside = document.createElement("div");
      outside.className = "table-wide";
      table.replaceWith(outside);
      outside.append(table);
    }
    if (outside.scrollWidth <= outside.clientWidth) return;
    Object.assign(outside, { tabIndex: 0, role: "region", ariaLabel: table.caption?.textContent.trim() || "Wide table" });
  }

  for (const table of document.querySelectorAll("article table")) {
    const heads = table.tHead ? [...table.tHead.querySelectorAll("th")] : [];
    for (const head of heads) if (!head.scope) head.scope = "col";
    if (heads.length > WIDE) box(table);
    if (table.tHead?.rows.length !== 1 || !table.tBodies[0] || table.tBodies[0].rows.length < LONG) continue;
    const cells = [...table.tHead.rows[0].cells], even = (row) => row.cells.length === cells.length && [...row.cells].every((c) => c.colSpan * c.rowSpan === 1);
    if (cells.length !== heads.length || ![...table.tBodies[0].rows].every(even)) continue;
    heads.forEach((head, column) => {
      const inside = head.querySelector(":scope > p") || head;
      if (!inside.textContent.trim()) return;
      const button = document.createElement("button");
      Object.assign(button, { type: "button", className: "sort", title: "Sort by this column" });
      button.append(...inside.childNodes);
      button.addEventListener("click", () => sort(table, heads, column));
      inside.append(button);
    });
  }
});
