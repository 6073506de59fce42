// Long tables can be sorted by a click on the head of a column, wide ones scroll within, those of sentences become blocks on a
// telephone; heads say that they are heads. Nothing is stored, sent or loaded.
"use strict";

document.addEventListener("DOMContentLoaded", () => {
  const LONG = 6; // rows that are sorted
  const SENTENCE = 80, WORDS = 28; // characters of a cell that is a sentence, and at most of all cells of a column of words

  const RATE = /\d\/\d+ = [\d.]+ % \[/; // counts, their share and its interval

  // The number with which a cell begins, that of a share (135/512, 9 of 48) its quotient; NaN without one.
  function number(text) {
    const plain = text.trim().replace(/[\u2212\u2013]/g, "-").replace(/(\d)[\s\u202f\u00a0](?=\d{3}\b)/g, "$1");
    const share = plain.match(/^([-+]?\d+(?:\.\d+)?)\s*(?:\/|of\b)\s*(\d+(?:\.\d+)?)/);
    return share && Number(share[2]) ? share[1] / share[2] : parseFloat(plain);
  }
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

  // Put a table into a box that scrolls when it is too wide, unless it is in one.
  function box(table) {
    let outside = table.parentElement;
    const scrolls = (one) => !one.matches(".cell_output, .output") && ["auto", "scroll"].includes(getComputedStyle(one).overflowX);
    while (outside && outside !== document.body && !scrolls(outside)) outside = outside.parentElement;
    if (outside && outside !== document.body) return;
    outside = document.createElement("div");
    outside.className = "table-wide";
    table.replaceWith(outside);
    outside.append(table);
  }

  // Whether a table is one of sentences; formulas count as a word. Its cells then carry what a block of them shows.
  function sentences(table, heads) {
    const rows = [...(table.tBodies[0]?.rows || [])].filter((row) => row.cells.length === heads.length);
    const size = (c) => c.textContent.replace(/\\\(.*?\\\)/gs, "formula").trim().length;
    const longest = heads.map((_, column) => Math.max(0, ...rows.map((row) => size(row.cells[column]))));
    const names = heads.map((head) => head.textContent.trim());
    if (heads.length < 3 || !(Math.max(...longest) > SENTENCE || names.includes("verdict"))) return;
    table.classList.add("sentences");
    for (const [selector, role] of [["thead, tbody", "rowgroup"], ["tr", "row"], ["thead th", "columnheader"], ["td", "cell"], ["tbody th", "rowheader"]]) {
      for (const one of table.querySelectorAll(selector)) one.setAttribute("role", role);
    }
    table.setAttribute("role", "table");
    for (const row of rows) {
      [...row.cells].forEach((c, column) => {
        c.classList.toggle("words", longest[column] <= WORDS);
        if (column && names[column] && names[column] !== "verdict") c.dataset.head = names[column];
      });
    }
  }

  for (const table of document.querySelectorAll("article table")) {
    const heads = table.tHead ? [...table.tHead.querySelectorAll("th")] : [];
    for (const head of heads) if (!head.scope) head.scope = "col";
    if (!table.closest(".lab")) box(table);
    for (const one of table.tBodies[0]?.querySelectorAll("td") || []) one.classList.toggle("rate", RATE.test(one.textContent));
    sentences(table, heads);
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
