// The figures that move: every <figure class="moving"> names one, and holds its data. Nothing is stored, sent or loaded.
"use strict";

(() => {
  const FIGURES = { radius, levels, certificate, scale };

  // Making elements

  function made(found, attributes, children) {
    for (const [key, value] of Object.entries(attributes)) {
      if (key.startsWith("on")) found.addEventListener(key.slice(2), value);
      else found.setAttribute(key, value);
    }
    found.append(...children);
    return found;
  }
  const element = (tag, attributes = {}, ...children) => made(document.createElement(tag), attributes, children);
  const drawing = (tag, attributes = {}, ...children) =>
    made(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
  const shorten = (v) => String(Number(v.toPrecision(3))).replace("-", "\u2212");
  const grouped = (n) => String(n).replace(/\B(?=(\d{3})+$)/g, "\u202f");

  // A labelled choice; options are [value, text]. The change is told to the figure.
  function choice(name, options, changed) {
    const select = element("select", { onchange: changed }, ...options.map(([value, text]) => new Option(text, value)));
    return { host: element("label", {}, `${name} `, select), get value() { return select.value; } };
  }

  // A labelled slider over whole numbers; ``say`` puts its value in words, for the eye and for a screen reader.
  function slider(name, low, high, value, say, changed) {
    const output = element("output"), input = element("input", { type: "range", min: low, max: high, step: 1, value });
    const tell = () => {
      output.textContent = say(Number(input.value));
      input.setAttribute("aria-valuetext", output.textContent);
    };
    input.addEventListener("input", () => { tell(); changed(); });
    tell();
    return {
      host: element("label", {}, `${name} `, input, " ", output),
      get value() { return Number(input.value); },
      limit(a, b, at) { Object.assign(input, { min: a, max: b, value: at }); tell(); },
    };
  }

  // Ticks at round numbers between two ends.
  function ticks(low, high) {
    const rough = (high - low) / 5, size = 10 ** Math.floor(Math.log10(rough));
    const step = size * [1, 2, 5, 10].find((s) => s * size >= rough);
    return Array.from({ length: Math.floor(high / step + 1e-9) - Math.ceil(low / step - 1e-9) + 1 }, (_, i) => step * (Math.ceil(low / step - 1e-9) + i));
  }

  // A chart of lines, as wide as its place. Series are {name, kind, points: [{x, y, low?, high?}], dashed?}; kind is a class of
  // moving.css, ``now`` the x that is chosen, ``base`` a y that is marked.
  function chart(host, { x, y, series, now, base }) {
    const w = Math.min(640, Math.max(280, host.clientWidth)), h = 260, [left, right, top, bottom] = [56, 12, 12, 44];
    const px = (v) => left + ((w - left - right) * (v - x.low)) / (x.high - x.low);
    const py = (v) => top + (h - top - bottom) * (1 - (Math.min(y.high, Math.max(y.low, v)) - y.low) / (y.high - y.low));
    const line = (x1, y1, x2, y2, kind) => drawing("line", { x1, y1, x2, y2, class: kind });
    const label = (at, to, words, anchor = "middle") => drawing("text", { x: at, y: to, "text-anchor": anchor }, words);
    const parts = [line(left, h - bottom, w - right, h - bottom, "axis"), line(left, top, left, h - bottom, "axis")];
    for (const v of ticks(y.low, y.high)) parts.push(line(left, py(v), w - right, py(v), "grid"), label(left - 6, py(v) + 4, shorten(v), "end"));
    for (const [v, text] of x.marks || ticks(x.low, x.high).map((v) => [v, shorten(v)])) parts.push(label(px(v), h - bottom + 16, text));
    parts.push(label((left + w - right) / 2, h - 6, x.label));
    parts.push(drawing("text", { transform: `translate(12 ${(top + h - bottom) / 2}) rotate(-90)`, "text-anchor": "middle" }, y.label));
    if (base !== undefined) parts.push(line(left, py(base), w - right, py(base), "base"));
    if (now !== undefined) parts.push(line(px(now), top, px(now), h - bottom, "now"));
    for (const { kind, points, dashed } of series) {
      const places = points.map((p) => `${px(p.x).toFixed(1)},${py(p.y).toFixed(1)}`).join(" ");
      parts.push(drawing("polyline", { points: places, class: `line ${kind}${dashed ? " dashed" : ""}` }));
      for (const p of points.filter((one) => one.low !== undefined)) parts.push(line(px(p.x), py(p.low), px(p.x), py(p.high), `bar ${kind}`));
      for (const p of points.length > 30 ? [] : points) parts.push(drawing("circle", { cx: px(p.x), cy: py(p.y), r: 3, class: `dot ${kind}` }));
    }
    const words = series.map((s) => `${s.name}: from ${shorten(s.points[0].y)} to ${shorten(s.points.at(-1).y)}`).join("; ");
    const said = `${y.label} by ${x.label}. ${words}`;
    const key = series.map((s) => element("span", { class: `key ${s.kind}${s.dashed ? " dashed" : ""}` }, s.name));
    host.replaceChildren(
      drawing("svg", { viewBox: `0 0 ${w} ${h}`, width: w, height: h, role: "img", "aria-label": said }, ...parts),
      element("p", { class: "moving-key" }, ...key),
    );
  }

  // Image ``column`` of a row of a sprite, in a place with words below.
  function tile(data, row, column, rows, words, label, kind = "") {
    const x = (100 * column) / (data.columns - 1), y = (100 * row) / (rows - 1);
    const picture = element("span", { class: "moving-tile", role: "img", "aria-label": label });
    Object.assign(picture.style, {
      backgroundImage: `url(data:image/png;base64,${data.sprite})`,
      backgroundSize: `${100 * data.columns}% ${100 * rows}%`, backgroundPosition: `${x}% ${y}%`,
    });
    return element("span", { class: `moving-picture ${kind}` }, picture, ...words.map((w) => element("span", {}, w)));
  }

  // The frame of a figure: controls, chart, pictures, and a line that is read aloud when it changes.
  function frame(place, controls) {
    const parts = { chart: element("div"), pictures: element("div", { class: "moving-pictures" }), said: element("p", { role: "status" }) };
    place.replaceChildren(element("div", { class: "moving-controls" }, ...controls.map((c) => c.host)), parts.pictures, parts.chart, parts.said);
    return parts;
  }

  // Radius and attack against verdict and margin

  function radius(place, data) {
    const MODELS = ["CNN", "AT", "DC", "RDC"], top = data.radii.length - 1;
    const image = choice("Image", data.labels.map((y, i) => [i, `${i + 1}: ${data.classes[y]}`]), show);
    const attacks = [["noise", "random signs"], ["bpda", "PGD; RDC by BPDA"], ["exact", "PGD; RDC exact"], ["smoothed 0.3", "PGD; RDC smoothed"]];
    const attack = choice("Attack", attacks.reverse(), show);
    const at = slider("Radius", 0, top, 2, (i) => String(data.radii[i]), show);
    const parts = frame(place, [image, attack, at]);
    function show() {
      const i = Number(image.value), of = (m) => data.series.find((s) => s.model === m && (s.attack === attack.value || (s.attack === "pgd" && attack.value !== "noise")));
      const found = MODELS.map(of), right = (s) => s.said[i][at.value] === data.labels[i];
      const part = (s, r) => s.margin[i][r] / s.margin[i][0];
      const series = found.map((s) => ({ name: s.model, kind: s.model, points: data.radii.map((r, n) => ({ x: r, y: part(s, n) })) }));
      chart(parts.chart, { x: { low: 0, high: data.radii[top], label: "Linf radius" }, y: { low: -1.5, high: 1.25, label: "margin / clean margin" }, series, now: data.radii[at.value], base: 0 });
      parts.pictures.replaceChildren(...found.map((s) => {
        const words = data.classes[s.said[i][at.value]], sign = right(s) ? "\u2713" : "\u2717";
        return tile(data, i * data.rows + s.row, at.value, data.rows * data.labels.length, [s.model, `${sign} ${words}`], `what ${s.model} sees`);
      }));
      const kept = found.filter(right).map((s) => s.model);
      parts.said.textContent = `At radius ${data.radii[at.value]}, ${kept.length ? kept.join(", ") : "none of the four"} still ${kept.length > 1 ? "say" : "says"} ${data.classes[data.labels[i]]}. Margins below \u22121.5 lie on the lower edge.`;
    }
    return show;
  }

  // Noise level and denoising by class

  function levels(place, data) {
    const { sigmas, classes } = data, top = sigmas.length - 1;
    const image = choice("Image", data.labels.map((y, i) => [i, `${i + 1}: ${classes[y]}`]), show);
    const at = slider("Noise level \u03c3", 0, top, 3, (i) => String(sigmas[i]), show);
    const parts = frame(place, [image, at]);
    function show() {
      const i = Number(image.value), y = data.labels[i], errors = data.errors[i], row = i * sigmas.length + at.value;
      const best = (line) => line.indexOf(Math.min(...line)), rival = (line) => Math.min(...line.filter((_, k) => k !== y));
      const now = errors[at.value], picture = (c, words, label, kind) => tile(data, row, c, sigmas.length * data.labels.length, words, label, kind);
      parts.pictures.replaceChildren(
        picture(0, ["noisy"], "the noisy image"),
        ...classes.map((name, k) => picture(k + 1, [`${k === y ? "true: " : ""}${name}`, shorten(now[k])], `denoised as ${name}`, k === best(now) ? "least" : "")),
      );
      const points = errors.map((line, n) => ({ x: n, y: rival(line) / line[y] })), high = Math.max(1.2, ...points.map((p) => p.y));
      chart(parts.chart, {
        x: { low: 0, high: top, label: "noise level \u03c3", marks: sigmas.map((s, n) => [n, String(s)]) },
        y: { low: Math.min(0.9, ...points.map((p) => p.y)), high, label: "best wrong / true error" },
        series: [{ name: "least error of a wrong class, divided by that of the true class", kind: "DC", points }], now: at.value, base: 1,
      });
      parts.said.textContent = `At \u03c3 = ${sigmas[at.value]} the least error is that of ${classes[best(now)]}, which is ${best(now) === y ? "right" : "wrong"}.`;
    }
    return show;
  }

  // Counts to certified radius

  function certificate(place) {
    const DRAWS = [100, 1000, 10000, 100000];
    const draws = choice("Draws n", [1000, 100, 10000, 100000].map((n) => [n, grouped(n)]), again);
    const noise = choice("Noise \u03c3", [0.25, 0.5, 1].map((s) => [s, String(s)]), show);
    const error = choice("Error \u03b1", [0.001, 0.01, 0.05, 0.0001].map((a) => [a, String(a)]), show);
    const count = slider("Draws of the class k", 500, 1000, 950, grouped, show);
    const parts = frame(place, [draws, noise, error, count]);
    function again() {
      const n = Number(draws.value);
      count.limit(n / 2, n, Math.round(0.95 * n));
      show();
    }
    function show() {
      const [n, sigma, alpha, k] = [Number(draws.value), Number(noise.value), Number(error.value), count.value];
      const point = (c, m) => ({ x: (100 * c) / m, y: Moving.radius(c, m, sigma, alpha) });
      const curve = (m) => Array.from({ length: 51 }, (_, i) => point(Math.round(m * (1 - 0.5 * (1 - i / 50) ** 2)), m)); // closer at the end
      const series = [n, ...DRAWS.filter((m) => m !== n)].map((m, i) => ({ name: `n = ${grouped(m)}`, kind: i ? "none" : "DC", points: curve(m), dashed: i > 0 }));
      const high = Moving.radius(100000, 100000, sigma, alpha);
      series.push({ name: "your counts", kind: "RDC", points: [point(k, n)] });
      chart(parts.chart, { x: { low: 50, high: 100, label: "share of the draws (%)" }, y: { low: 0, high, label: "certified L2 radius" }, series, now: (100 * k) / n });
      const p = Moving.lower(k, n, alpha), r = Moving.radius(k, n, sigma, alpha), all = Moving.radius(n, n, sigma, alpha);
      const found = r ? `the radius is ${r.toFixed(4)}` : "the classifier abstains";
      parts.said.textContent = `${grouped(k)} of ${grouped(n)}: p is at least ${p.toFixed(6)}, ${found}. If all ${grouped(n)} agreed, it would be ${all.toFixed(4)}: with so few draws no more can be certified.`;
    }
    return show;
  }

  // Guidance scale against accuracy and diversity

  function scale(place, data) {
    const MEASURES = {
      agreement: "agreement with the class", recall: "recall (diversity)", precision: "precision", frechet: "Frechet distance",
      "frechet robust features": "Frechet distance, robust features",
    };
    const GUIDES = ["vanilla", "robust", "wide", "classifier-free"], scales = [...new Set(data.rows.map((r) => r.scale))].sort((a, b) => a - b);
    const measure = choice("Measure", Object.entries(MEASURES), show);
    const known = choice("Denoiser", [["true", "knows the class"], ["false", "does not"]], show);
    const at = slider("Scale", 0, scales.length - 1, scales.indexOf(1), (i) => String(scales[i]), show);
    const parts = frame(place, [measure, known, at]), numbers = parts.pictures;
    numbers.className = "moving-wide";
    function show() {
      const name = measure.value, rows = data.rows.filter((r) => String(r.conditional) === known.value), none = rows.find((r) => r.guide === "none");
      const of = (g) => rows.filter((r) => r.guide === g).sort((a, b) => a.scale - b.scale);
      const point = (r) => ({ x: scales.indexOf(r.scale), y: r[name][0], low: r[name][1], high: r[name][2] });
      const series = GUIDES.filter((g) => of(g).length).map((g) => ({ name: g, kind: g, points: [none, ...of(g)].map(point) }));
      const ends = rows.flatMap((r) => r[name].slice(1)), room = 0.05 * (Math.max(...ends) - Math.min(...ends));
      const y = { low: Math.min(...ends) - room, high: Math.max(...ends) + room, label: MEASURES[name] };
      chart(parts.chart, { x: { low: 0, high: scales.length - 1, label: "scale of the guide", marks: scales.map((s, n) => [n, String(s)]) }, y, series, now: at.value, base: none[name][0] });
      const here = rows.filter((r) => r.scale === scales[at.value]), cell = (v) => `${shorten(v[0])} [${shorten(v[1])}, ${shorten(v[2])}]`;
      const head = ["guide", "agreement", "recall"], line = (r) => [cell(r.agreement), cell(r.recall)].map((text) => element("td", {}, text));
      numbers.replaceChildren(element("table", { class: "table" },
        element("caption", {}, `Scale ${scales[at.value]}: agreement and recall, with 95 % intervals`),
        element("thead", {}, element("tr", {}, ...head.map((h) => element("th", { scope: "col" }, h)))),
        element("tbody", {}, ...here.map((r) => element("tr", {}, element("th", { scope: "row" }, r.guide), ...line(r)))),
      ));
      parts.said.textContent = here.length ? `${here.length} guides were tried at scale ${scales[at.value]}; each mean is of ${here[0].n} times ${data.images} images.` : `No guide was tried at scale ${scales[at.value]} with this denoiser.`;
    }
    return show;
  }

  document.addEventListener("DOMContentLoaded", () => {
    for (const box of document.querySelectorAll("figure.moving")) {
      const data = JSON.parse(box.querySelector("script").textContent), show = FIGURES[box.dataset.moving](box.querySelector('[data-part="place"]'), data);
      show();
      let width = box.clientWidth;
      new ResizeObserver(() => { if (box.clientWidth !== width) { width = box.clientWidth; show(); } }).observe(box);
    }
  });
})();
