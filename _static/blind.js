// The blind comparison of book/blind.md. Every page loads this file; without the widget it does nothing.
// Nothing is stored and nothing is sent: the answers live in one array and are gone with the page.
"use strict";

(() => {
  const NAMES = { right: "right", wrong: "wrong", none: "cannot tell" };
  const KEYS = { ArrowLeft: "left", ArrowRight: "right", n: "none", N: "none" };

  // Wilson's 95 % interval of the share k / n.
  function wilson(k, n) {
    const z = 1.959963984540054, share = k / n, wide = 1 + (z * z) / n;
    const middle = (share + (z * z) / (2 * n)) / wide;
    const half = (z / wide) * Math.sqrt((share * (1 - share)) / n + (z * z) / (4 * n * n));
    return [Math.max(0, middle - half), Math.min(1, middle + half)];
  }

  // Exact two-sided sign test of a against b answers: the chance of so uneven a split if both sides were equally likely.
  function signTest(a, b) {
    const n = a + b;
    let term = Math.pow(0.5, n), tail = 0; // term is C(n, i) / 2^n
    for (let i = 0; i <= Math.min(a, b); i += 1) {
      tail += term;
      term *= (n - i) / (i + 1);
    }
    return Math.min(1, 2 * tail);
  }

  // 0 ... n - 1 in random order, each order equally likely (Fisher and Yates); random() is uniform in [0, 1).
  function shuffled(n, random) {
    const order = Array.from({ length: n }, (_, i) => i);
    for (let i = n - 1; i > 0; i -= 1) {
      const j = Math.floor(random() * (i + 1));
      [order[i], order[j]] = [order[j], order[i]];
    }
    return order;
  }

  // The first n bits of a base 64 text, the highest bit of a byte first.
  function unseal(text, n) {
    const bytes = Array.from(atob(text), (c) => c.charCodeAt(0));
    return Array.from({ length: n }, (_, i) => Boolean((bytes[i >> 3] >> (7 - (i & 7))) & 1));
  }

  // What an answer is. It is {pair, cell}: the place in the sprite that is said to be the guided one, or null for "cannot tell".
  function judged({ pair, cell }, data) {
    if (cell === null) return "none";
    return (cell === data.pairs[pair].cells[0]) === unseal(data.sealed, data.pairs.length)[pair] ? "right" : "wrong";
  }

  // How many answers are right, wrong, or none.
  function tally(answers, data) {
    const count = { right: 0, wrong: 0, none: 0 };
    for (const answer of answers) count[judged(answer, data)] += 1;
    return count;
  }

  const percent = (share, digits = 1) => `${(100 * share).toFixed(digits)}\u00a0%`;

  // One row of the result: what the answers were, how many, and their share with its interval.
  function resultRow(side, count, n) {
    const [low, high] = wilson(count, n), row = document.createElement("tr");
    const range = `${Math.round(100 * low)} to ${percent(high, 0)}`;
    const texts = [NAMES[side], String(count), percent(count / n), range];
    texts.forEach((text, i) => {
      const cell = row.appendChild(document.createElement(i ? "td" : "th"));
      if (!i) cell.scope = "row";
      cell.textContent = text;
    });
    return row;
  }

  // What the sign test says of the pairs that were answered: could this be guessing?
  function verdict({ right, wrong }) {
    const n = right + wrong;
    if (!n) return "You answered none, so there is nothing to test.";
    const p = signTest(right, wrong), text = p < 0.001 ? "below 0.001" : `= ${p.toFixed(3)}`;
    const pairs = n === 1 ? "the one pair" : `the ${n} pairs`;
    return `Of ${pairs} that you answered, ${right} are right: two-sided sign test against guessing, p ${text}.`;
  }

  // How the images were made, and how much there was to see.
  function source({ guide, denoiser, sampler, conditional, difference, environment }) {
    const how = `${conditional ? "conditional" : "unconditional"} denoiser ${denoiser.name}, sampler "${sampler}"`;
    const seen = `${difference.median} of 255 grey levels on average (median pair; at most ${difference.max})`;
    const made = `The images: ${how}, guide ${guide.name} with scale ${guide.scale}; made on ${environment.date}.`;
    return `${made} The two images of a pair differ by ${seen}.`;
  }

  function start(box, data) {
    const part = (name) => box.querySelector(`[data-part="${name}"]`);
    let order, swapped, answers;

    // The cells of the pair on show, as they stand left and right.
    function onShow() {
      const pair = order[answers.length], [a, b] = data.pairs[pair].cells;
      return { pair, left: swapped[pair] ? b : a, right: swapped[pair] ? a : b };
    }

    function paint(element, cell) {
      const x = (cell % data.columns) / (data.columns - 1), y = Math.floor(cell / data.columns) / (data.rows - 1);
      element.style.backgroundSize = `${100 * data.columns}% ${100 * data.rows}%`;
      element.style.backgroundPosition = `${100 * x}% ${100 * y}%`;
    }

    const SAID = { right: "Right. ", wrong: "Wrong. ", none: "" };

    function showPair() {
      const { pair, left, right } = onShow();
      paint(part("left"), left);
      paint(part("right"), right);
      part("class").textContent = data.pairs[pair].class;
      const last = answers.length ? SAID[judged(answers.at(-1), data)] : "";
      part("progress").textContent = `${last}Pair ${answers.length + 1} of ${data.pairs.length}: ${data.pairs[pair].class}`;
      part("show").disabled = !answers.length;
    }

    function showResult() {
      const count = tally(answers, data), n = answers.length;
      part("rows").replaceChildren(...["right", "wrong", "none"].map((side) => resultRow(side, count[side], n)));
      part("test").textContent = verdict(count);
      part("source").textContent = source(data.provenance);
      part("progress").textContent = `Result after ${n} of ${data.pairs.length} pairs`;
      swap(true);
      part("result").focus();
    }

    // Either the pair or the result is on show.
    function swap(done) {
      part("stage").hidden = done;
      part("show").hidden = done;
      part("result").hidden = !done;
    }

    function answer(side) {
      const shown = onShow();
      answers.push({ pair: shown.pair, cell: side === "none" ? null : shown[side] });
      if (answers.length === data.pairs.length) showResult();
      else showPair();
    }

    function again() {
      order = shuffled(data.pairs.length, Math.random);
      swapped = order.map(() => Math.random() < 0.5);
      answers = [];
      swap(false);
      showPair();
    }

    box.addEventListener("keydown", (event) => {
      if (event.ctrlKey || event.metaKey || event.altKey || event.repeat || part("stage").hidden || !(event.key in KEYS)) return;
      event.preventDefault();
      event.stopPropagation();
      answer(KEYS[event.key]);
    });
    for (const button of box.querySelectorAll("[data-answer]")) {
      button.addEventListener("click", () => answer(button.dataset.answer));
    }
    part("show").addEventListener("click", showResult);
    part("again").addEventListener("click", () => {
      again();
      box.focus();
    });
    again();
    box.hidden = false;
  }

  if (typeof module === "object") module.exports = { wilson, signTest, shuffled, unseal, tally };
  else {
    document.addEventListener("DOMContentLoaded", () => {
      const box = document.getElementById("blind"), data = document.getElementById("blind-data");
      if (box && data) start(box, JSON.parse(data.textContent));
    });
  }
})();
