// What is wider than its place scrolls there: it fades where there is more, and the keyboard reaches it. Nothing is stored, sent or loaded.
"use strict";

document.addEventListener("DOMContentLoaded", () => {
  const PLACES = ".table-wide, .pst-scrollable-table-container, .figure-wide, .cell_output, article div.math mjx-container, article pre";
  const SMALL = 440, SHOWN = 560; // pixels of a figure whose type can be read on a telephone, and of one that scrolls there
  const LEAST = 0.6; // of its size, a formula of the interface

  function mark(place) {
    const over = place.scrollWidth - place.clientWidth, at = Math.abs(place.scrollLeft);
    const scrolls = over > 1 && ["auto", "scroll"].includes(getComputedStyle(place).overflowX);
    place.classList.toggle("more-left", scrolls && at > 1);
    place.classList.toggle("more-right", scrolls && at < over - 1);
    if (!scrolls || place.hasAttribute("tabindex")) return;
    const name = place.querySelector("caption")?.textContent.trim() || place.querySelector("img")?.alt || "Wide content";
    Object.assign(place, { tabIndex: 0, role: "region", ariaLabel: name });
  }

  // Docstrings keep a formula on one line, for those who read them in a terminal.
  function fit(formula) {
    for (let size = 1; innerWidth > 600 && formula.scrollWidth > formula.clientWidth; ) {
      size *= Math.min(0.99, formula.clientWidth / formula.scrollWidth);
      if (size < LEAST) return;
      formula.style.fontSize = `${100 * size}%`;
    }
  }

  // A figure with type for a desk is put into a box, in which it keeps its size on a telephone.
  function box(image) {
    if (image.naturalWidth <= SMALL || image.closest(".figure-wide")) return;
    const inside = image.closest("a.image-reference") || image, outside = document.createElement("div");
    outside.className = "figure-wide";
    outside.style.setProperty("--least", `${Math.min(SHOWN, image.naturalWidth)}px`);
    inside.replaceWith(outside);
    outside.append(inside);
    watch(outside);
  }

  const sizes = new ResizeObserver((entries) => entries.forEach(({ target }) => mark(target)));
  function watch(place) {
    sizes.observe(place);
    place.addEventListener("scroll", () => mark(place), { passive: true });
    mark(place);
  }
  const all = () => document.querySelectorAll(PLACES);

  for (const image of document.querySelectorAll("article :is(figure, .finding, .cell_output) img")) {
    if (image.complete && image.naturalWidth) box(image);
    else image.addEventListener("load", () => box(image), { once: true });
  }
  all().forEach(watch);
  addEventListener("resize", () => all().forEach(mark));
  addEventListener("load", () => window.MathJax?.startup?.promise.then(() => {
    document.querySelectorAll("article:has(dl.py) div.math mjx-container").forEach(fit);
    document.querySelectorAll("article div.math mjx-container").forEach(watch);
    all().forEach(mark);
  }));
});
