// The filter above the table of claims in book/findings.md. Every page loads this file; without the table it does nothing.
"use strict";

document.addEventListener("DOMContentLoaded", () => {
  const table = document.querySelector("#findings-table");
  if (!table) return;
  const rows = [...table.querySelectorAll("tbody tr")];
  const bar = document.createElement("div");
  bar.className = "findings-filter";
  const count = document.createElement("span");
  count.setAttribute("role", "status");

  const choice = (name, options) => {
    const label = document.createElement("label");
    const select = document.createElement("select");
    for (const [value, text] of options) select.add(new Option(text, value));
    select.addEventListener("change", apply);
    label.append(`${name} `, select);
    bar.append(label);
    return select;
  };

  const paper = choice("Paper", [["", "all"], ["paper-rdc", "RDC"], ["paper-ndc", "NDC"], ["paper-guidance", "guidance"]]);
  const verdicts = ["holds", "does not hold", "refuted", "not decided", "not run"];
  const verdict = choice("Verdict", [["", "all"], ...verdicts.map((v) => [`verdict-${v.replaceAll(" ", "-")}`, v])]);
  const scales = [...new Set(rows.flatMap((row) => [...row.classList].filter((name) => name.startsWith("scale-"))))];
  const scale = choice("Scale", [["", "all"], ...scales.map((name) => [name, name.slice("scale-".length)])]);
  bar.append(count);
  table.before(bar);

  function apply() {
    const wanted = [paper.value, verdict.value, scale.value].filter(Boolean);
    const shown = rows.filter((row) => (row.hidden = !wanted.every((name) => row.classList.contains(name))) === false);
    count.textContent = `${shown.length} of ${rows.length} claims`;
  }
  apply();
});
