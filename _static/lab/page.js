// The laboratory's page: fills every <div class="lab"> with digits, sliders, attacks and charts. Every number comes from
// mathematics.js. Nothing is stored and nothing is sent.
"use strict";

(() => {
  const ATTACKS = {
    none: ["Classifier alone", "the attack does not know of LM"],
    bpda: ["RDC, BPDA", "the gradient takes LM for the identity"],
    exact: ["RDC, exact", "the gradient of every step of LM"],
    smoothed: ["RDC, smoothed", "the same, through blurred signs"],
  };
  const STEPS = 20, FIRST = 7; // steps of an attack; the digit that is chosen at first
  // The experiments of book/laboratory.md.
  const EXPERIMENTS = [{ digit: 7, method: "sign" }, { digit: 6, method: "adam" }, { digit: 4, method: "sign" }];

  // Making elements

  function element(tag, attributes = {}, ...children) {
    const found = document.createElement(tag);
    for (const [key, value] of Object.entries(attributes)) {
      if (key.startsWith("on")) found.addEventListener(key.slice(2), value);
      else if (value === true || value === false) found.toggleAttribute(key, value);
      else found.setAttribute(key, value);
    }
    found.append(...children);
    return found;
  }

  function drawing(tag, attributes = {}, ...children) {
    const found = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [key, value] of Object.entries(attributes)) found.setAttribute(key, value);
    found.append(...children);
    return found;
  }

  // A canvas with an image in [0, 1], white on black; a change is shown around grey.
  function paint(canvas, x, side) {
    const context = canvas.getContext("2d"), image = context.createImageData(side, side);
    x.forEach((v, i) => image.data.set([v * 255, v * 255, v * 255, 255], 4 * i));
    context.putImageData(image, 0, 0);
  }

  const canvas = (side, label) => element("canvas", { width: side, height: side, role: "img", "aria-label": label });
  const figure = (side, label) => {
    const picture = canvas(side, label), caption = element("figcaption");
    return { host: element("figure", {}, picture, caption), picture, caption };
  };
  const digit = (k) => `${k === 8 ? "an" : "a"} ${k}`;
  const shorten = (v) => (Math.abs(v) >= 100 || v === 0 ? v.toFixed(0) : v.toPrecision(3)).replace("-", "\u2212");

  // A line chart in nats by step: series are {name, key, values, dashed}; their colours are classes of lab.css.
  function chart(host, title, series, step, zero) {
    const [w, h, left, right, top, bottom] = [300, 190, 62, 8, 8, 40];
    const all = series.flatMap((s) => s.values).concat(zero ? [0] : []);
    const low = Math.min(...all), high = Math.max(...all), span = high - low || 1;
    const px = (i) => left + ((w - left - right) * i) / STEPS, py = (v) => top + (h - top - bottom) * (1 - (v - low) / span);
    const line = (x1, y1, x2, y2, kind) => drawing("line", { x1, y1, x2, y2, class: kind });
    const label = (x, y, words, anchor = "end") => drawing("text", { x, y, "text-anchor": anchor }, words);
    const parts = [line(left, h - bottom, w - right, h - bottom, "axis"), line(left, top, left, h - bottom, "axis")];
    parts.push(label(left - 4, py(high) + 8, shorten(high)), label(left - 4, py(low) + 1, shorten(low)));
    if (zero && low < 0 && high > 0) parts.push(line(left, py(0), w - right, py(0), "zero"));
    if (zero && (py(0) - py(high) > 14 && py(low) - py(0) > 14)) parts.push(label(left - 4, py(0) + 4, "0"));
    for (let i = 0; i <= STEPS; i += 5) parts.push(label(px(i), h - bottom + 16, String(i), "middle"));
    parts.push(label((left + w - right) / 2, h - 5, "step of the attack", "middle"));
    const middle = (top + h - bottom) / 2, turned = { x: 12, y: middle, transform: `rotate(-90 12 ${middle})` };
    parts.push(drawing("text", { ...turned, "text-anchor": "middle" }, "nats"));
    parts.push(line(px(step), top, px(step), h - bottom, "now"));
    for (const s of series) {
      const points = s.values.map((v, i) => `${px(i).toFixed(1)},${py(v).toFixed(1)}`).join(" ");
      parts.push(drawing("polyline", { points, class: `line ${s.key}${s.dashed ? " dashed" : ""}` }));
      if (s.values.length === 1) parts.push(drawing("circle", { cx: px(0), cy: py(s.values[0]), r: 3, class: `dot ${s.key}` }));
    }
    const words = series.map((s) => `${s.name}: from ${shorten(s.values[0])} to ${shorten(s.values.at(-1))}`).join("; ");
    const said = `${title}, in nats, by step of the attack. ${words}`;
    const picture = drawing("svg", { viewBox: `0 0 ${w} ${h}`, role: "img", "aria-label": said }, ...parts);
    host.replaceChildren(element("figcaption", {}, title), picture);
  }

  // The laboratory

  function start(box, lab) {
    const full = box.dataset.lab === "full", side = lab.side, name = (key) => `lab-${box.dataset.lab}-${key}`;
    const state = { sigma: 0.5, eps: 0.2, method: "sign", attack: "none", step: 0, runs: {}, run: 0 };
    const likelihoodMaximisation = () => Lab.METHODS[state.method](state.eps);
    const status = element("p", { role: "status", class: "lab-status" });
    const pictures = ["digit", "attacked digit", "after LM"].map((label) => figure(side, label));
    const place = () => element("figure", { class: "lab-chart" });
    const charts = { margin: place(), all: place(), own: place(), odds: place() };

    // What is at a step of the chosen attack: the image, the image after LM, and what both classifiers say.
    function current() {
      const run = state.runs[state.attack];
      return run ? run[Math.min(state.step, run.length - 1)] : measured({ x: state.x, step: 0 });
    }

    // A point of an attack with its likelihoods and verdicts, before and after LM.
    function measured({ x, step, value }) {
      const z = Lab.toModel(x), after = Lab.maximise(lab, z, likelihoodMaximisation()).z;
      const alone = Lab.logits(lab, z), behind = Lab.logits(lab, after);
      const margin = Lab.margin(alone, state.y).value;
      return { x, step, value, after, margin, alone: Lab.argmax(alone), behind: Lab.argmax(behind) };
    }

    // Exact likelihoods of a run at the noise level of the slider, before and after LM.
    const exact = (run) => run.map((p) => [Lab.toModel(p.x), p.after].map((z) => Lab.likelihoods(lab, z, state.y, state.sigma)));

    function select(place, x, y) {
      Object.assign(state, { x, y, step: 0, runs: {}, run: state.run + 1 });
      for (const [i, button] of thumbnails.entries()) button.setAttribute("aria-pressed", String(i === place));
      if (label) label.value = String(y);
      show("Press Attack.");
    }

    // Everything that depends on the state.
    function show(words) {
      const now = current();
      const verdict = (k) => `${k}${k === state.y ? " \u2713" : " \u2717"}`;
      [state.x, now.x, Lab.fromModel(now.after)].forEach((x, i) => paint(pictures[i].picture, x, side));
      pictures[0].caption.textContent = `digit: ${state.y}`;
      pictures[1].caption.textContent = `step ${now.step}: classifier says ${verdict(now.alone)}`;
      pictures[2].caption.textContent = `after LM: RDC says ${verdict(now.behind)}`;
      const run = state.runs[state.attack] || [now], values = exact(run);
      const pair = (key) => [
        { name: "before LM", key: "before", values: values.map(([a]) => a[key]) },
        { name: "after LM", key: "after", values: values.map(([, b]) => b[key]), dashed: true },
      ];
      chart(charts.odds, `log-odds of ${state.y}`, pair("odds"), now.step, true);
      if (full) {
        chart(charts.all, "log p(x)", pair("all"), now.step);
        chart(charts.own, `log p(x | ${state.y})`, pair("own"), now.step);
        const before = [{ name: "classifier alone", key: "none", values: [now.margin] }];
        const series = Object.keys(ATTACKS).filter((key) => state.runs[key]).map((key) => (
          { name: ATTACKS[key][0], key, values: state.runs[key].map((p) => p.value) }
        ));
        chart(charts.margin, "margin of what is attacked", series.length ? series : before, now.step, true);
        step.value = String(now.step);
        stepOut.textContent = String(now.step);
        summary();
        denoised(now);
      }
      if (words !== undefined) status.textContent = words;
    }

    // Attack, one step at a time, so that the page stays alive; `seen` is called after every step. False if another run began.
    async function climb(gradient, x, y, seen) {
      const id = state.run;
      for (const point of Lab.pgd(lab, x, y, { eps: state.eps, steps: STEPS, gradient, lm: likelihoodMaximisation() })) {
        seen(point);
        await new Promise((resolve) => setTimeout(resolve));
        if (id !== state.run) return false;
      }
      return true;
    }

    async function attack() {
      state.run += 1;
      state.runs = {};
      const order = full ? [state.attack, ...Object.keys(ATTACKS).filter((key) => key !== state.attack)] : ["none"];
      for (const key of order) {
        state.runs[key] = [];
        const whole = await climb(key, state.x, state.y, (point) => {
          state.runs[key].push(measured(point));
          if (key === state.attack) state.step = point.step;
          show(`${ATTACKS[key][0]}: step ${point.step} of ${STEPS}.`);
        });
        if (!whole) return;
      }
      show(answer());
    }

    // The answer to the question of the page, for the chosen attack.
    function answer() {
      const run = state.runs[state.attack], last = run.reduce((best, p) => (p.value > best.value ? p : best));
      state.step = last.step;
      if (state.attack !== "none") {
        if (last.value <= 0) return "RDC holds against this attack.";
        return `RDC is broken: at step ${last.step} it takes the ${state.y} for ${digit(last.behind)}.`;
      }
      if (last.value <= 0) return "The classifier holds against this attack; try a larger radius.";
      const odds = exact([last])[0].map((l) => l.odds), up = odds[1] > odds[0] ? "rise" : "fall";
      const says = `LM ${last.behind === state.y ? "repairs" : "does not repair"} it: RDC says ${last.behind}`;
      const numbers = `the exact log-odds of ${state.y} ${up} from ${shorten(odds[0])} to ${shorten(odds[1])}`;
      return `The classifier takes the ${state.y} for ${digit(last.alone)}. ${says}, and ${numbers}.`;
    }

    // The digits

    const thumbnails = lab.test.slice(0, full ? 20 : 10).map(({ x, y }, i) => {
      const picture = canvas(side, digit(y));
      paint(picture, x, side);
      const options = { type: "button", class: "lab-digit", "aria-pressed": "false", "aria-label": `digit ${i + 1}, ${digit(y)}` };
      return element("button", { ...options, onclick: () => select(i, x, y) }, picture);
    });
    const press = element("button", { type: "button", class: "lab-go", onclick: attack }, "Attack");
    const row = element("div", { class: "lab-digits", role: "group", "aria-label": "Digits to choose from" }, ...thumbnails);
    const shown = element("div", { class: "lab-pictures" }, ...pictures.map((p) => p.host));
    const line = (kind, words) => element("span", { class: kind }, words);
    const key = element("p", { class: "lab-key" }, line("before", "before LM"), line("after dashed", "after LM"));
    let label, step, stepOut, summary = () => {}, denoised = () => {};

    // A labelled slider with its value; `read` turns its position into the value.
    function slider(title, key, [least, most, by], value, read, words, change) {
      const out = element("output", { for: name(key) }, words(read(value)));
      const input = element("input", { type: "range", id: name(key), min: least, max: most, step: by, value });
      input.addEventListener("input", () => {
        out.textContent = words(read(Number(input.value)));
        change(read(Number(input.value)));
      });
      return { host: element("label", { for: name(key), class: "lab-slider" }, `${title} `, input, " ", out), input, out };
    }

    // A change of the attack's options begins anew.
    function again(change) {
      Object.assign(state, change, { runs: {}, step: 0, run: state.run + 1 });
      show("Press Attack.");
    }

    function choice(title, key, options, value, change) {
      const select = element("select", { id: name(key) }, ...options.map(([v, words]) => element("option", { value: v }, words)));
      select.value = String(value);
      select.addEventListener("change", () => change(select.value));
      return { host: element("label", { for: name(key) }, `${title} `, select), select };
    }

    function buildSmall() {
      const link = element("a", { href: "laboratory.html" }, "The whole laboratory");
      const go = element("div", { class: "lab-controls" }, press);
      box.replaceChildren(row, go, status, shown, key, charts.odds, element("p", {}, link));
    }

    function buildFull() {
      const two = (v) => v.toFixed(2), change = (part) => { Object.assign(state, part); show(); };
      const radius = slider("radius", "eps", [0.02, 0.4, 0.02], state.eps, Number, two, (eps) => again({ eps }));
      const logs = [-1, 0.7, 0.02], log = Math.log10(state.sigma);
      const sigma = slider("noise level \u03c3", "sigma", logs, log, (v) => 10 ** v, two, (v) => change({ sigma: v }));
      const steps = slider("step", "step", [0, STEPS, 1], 0, Number, String, (v) => change({ step: v }));
      [step, stepOut] = [steps.input, steps.out];
      const methods = [["sign", "sign steps, ball of the radius"], ["adam", "Adam, as released"]];
      const method = choice("LM", "method", methods, state.method, (v) => again({ method: v }));
      const classes = lab.groups.map((_, k) => [k, String(k)]);
      const labels = choice("it is a", "label", classes, 0, (v) => again({ y: Number(v) }));
      label = labels.select;
      const rows = element("tbody"), radii = element("p"), certified = {};
      const radio = ([key, [title, words]]) => {
        const input = element("input", { type: "radio", name: name("attack"), value: key, checked: key === state.attack });
        input.addEventListener("change", () => {
          state.attack = key;
          show();
          if (state.runs[key] && state.runs[key].length > STEPS) show(answer());
        });
        return element("label", { class: `lab-attack ${key}` }, input, element("span", {}, title), element("small", {}, words));
      };
      const experiment = (i) => () => {
        const { digit: place, method: wanted } = EXPERIMENTS[i], { x, y } = lab.test[place];
        Object.assign(state, { method: wanted, attack: "none", eps: 0.2 });
        [method.select.value, radius.input.value, radius.out.textContent] = [wanted, "0.2", "0.20"];
        attacks.querySelector("input").checked = true;
        select(place, x, y);
        attack();
      };
      const tries = EXPERIMENTS.map((_, i) => (
        element("button", { type: "button", onclick: experiment(i) }, `Experiment ${i + 1}`)
      ));
      const legend = element("legend", {}, "Attack on");
      const attacks = element("fieldset", { class: "lab-attacks" }, legend, ...Object.entries(ATTACKS).map(radio));
      summary = () => {
        rows.replaceChildren(...Object.entries(state.runs).map(([key, run]) => {
          const broken = run.findIndex((p) => p.value > 0), top = Math.max(...run.map((p) => p.value));
          return tableRow(ATTACKS[key][0], [shorten(run[0].value), shorten(top), broken < 0 ? "no" : `step ${broken}`]);
        }));
        if (certified.x === state.x && certified.y === state.y) return;
        [certified.x, certified.y] = [state.x, state.y];
        const [linf, l2] = ["Linf", "L2"].map((norm) => Lab.certificate(lab, state.x, state.y, norm).toFixed(3));
        const words = `keeps ${state.y} for certain within Linf radius ${linf} and L2 radius ${l2} of the digit.`;
        radii.textContent = `The nearest neighbour ${Number(linf) ? words : `has another class: there is no certificate.`}`;
      };
      box.replaceChildren(
        element("div", { class: "lab-controls", role: "group", "aria-label": "Guided experiments" }, ...tries),
        element("h2", {}, "1. Choose or draw a digit"), row, drawer(labels.host),
        element("h2", {}, "2. Attack it"), attacks,
        element("div", { class: "lab-controls" }, radius.host, method.host, press), status, shown,
        element("div", { class: "lab-controls" }, steps.host, sigma.host), key,
        element("div", { class: "lab-charts" }, charts.odds, charts.own, charts.all, charts.margin),
        table("What each attack reaches", ["attack on", "margin before", "largest margin", "broken"], rows), radii, everyone(),
        element("h2", {}, "3. Look inside: one denoising step"), denoiser(),
      );
    }

    // Noise at the level of the slider, and what the denoiser makes of it, by class.
    function denoiser() {
      const top = ["attacked digit", "with noise", "denoised, no class"].map((title) => figure(side, title));
      const cells = lab.groups.map((_, k) => figure(side, `denoised as ${digit(k)}`));
      denoised = (now) => {
        const z = Lab.toModel(now.x), level = { sigma: state.sigma, eps: lab.levels[0].eps };
        const noisy = Lab.add(z, level.eps, level.sigma), share = Lab.posterior(lab, noisy, state.sigma);
        const clip = (v) => Lab.map(Lab.fromModel(v), (p) => Math.min(Math.max(p, 0), 1));
        [z, noisy, Lab.denoise(lab, noisy, state.sigma)].forEach((v, i) => paint(top[i].picture, clip(v), side));
        const titles = [`step ${now.step}`, `with noise, \u03c3 = ${state.sigma.toFixed(2)}`, "denoised, no class"];
        top.forEach((t, i) => { t.caption.textContent = titles[i]; });
        cells.forEach((cell, k) => {
          const { value, posterior } = Lab.denoisingLoss(lab, z, level, k);
          paint(cell.picture, clip(posterior.mean), side);
          const percent = ` ${(100 * share[k]).toFixed(0)}\u00a0%`;
          cell.caption.replaceChildren(element("b", {}, String(k)), percent, element("br"), `loss ${value.toFixed(1)}`);
        });
      };
      const words = "Denoised as each class; the exact posterior of the class, given the noisy image; and the denoising loss. " +
        "The classifier compares a weighted sum of such losses over eight noise levels.";
      const pictures = element("div", { class: "lab-pictures" }, ...top.map((t) => t.host));
      const classes = element("div", { class: "lab-classes" }, ...cells.map((c) => c.host));
      return element("div", {}, pictures, element("p", {}, words), classes);
    }

    // A pad of 8 x 8 pixels: a pointer paints, the arrow keys move, space paints, backspace rubs out.
    function drawer(labelHost) {
      const words = "Pad of 8 by 8 pixels; arrow keys move, space paints, backspace rubs out";
      const x = new Float64Array(lab.pixels), pad = canvas(side, words);
      let at = 27;
      const show = () => {
        paint(pad, x, side);
        mark.style.left = `${(100 * (at % side)) / side}%`;
        mark.style.top = `${(100 * Math.floor(at / side)) / side}%`;
      };
      const mark = element("span", { class: "lab-mark", "aria-hidden": "true" });
      const blot = (px, py, rub) => {
        x.forEach((v, i) => {
          const near = Math.max(0, 1.25 - Math.hypot((i % side) + 0.5 - px, Math.floor(i / side) + 0.5 - py));
          x[i] = rub ? v * (near > 0.7 ? 0 : 1) : Math.round(16 * Math.min(1, Math.max(v, near))) / 16;
        });
        show();
      };
      const where = (event) => {
        const r = pad.getBoundingClientRect();
        return [((event.clientX - r.left) * side) / r.width, ((event.clientY - r.top) * side) / r.height];
      };
      const use = () => select(-1, Float64Array.from(x), Lab.argmax(Lab.logits(lab, Lab.toModel(x))));
      pad.setAttribute("tabindex", "0");
      pad.addEventListener("pointerdown", (event) => {
        event.preventDefault();
        pad.setPointerCapture(event.pointerId);
        blot(...where(event));
      });
      pad.addEventListener("pointermove", (event) => { if (event.buttons) blot(...where(event)); });
      pad.addEventListener("pointerup", use);
      pad.addEventListener("keydown", (event) => {
        const moves = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -side, ArrowDown: side };
        const paints = event.key === " " || event.key === "Backspace";
        if (!paints && !(event.key in moves)) return;
        event.preventDefault();
        if (paints) blot((at % side) + 0.5, Math.floor(at / side) + 0.5, event.key === "Backspace");
        else at = (at + moves[event.key] + lab.pixels) % lab.pixels;
        show();
        if (paints) use();
      });
      const clear = element("button", { type: "button", onclick: () => { x.fill(0); show(); } }, "Clear");
      show();
      const beside = element("div", {}, element("p", {}, "Or draw one here, as large as the pad."), clear, " ", labelHost);
      return element("div", { class: "lab-draw" }, element("div", { class: "lab-pad" }, pad, mark), beside);
    }

    // All attacks on all digits, counted: what stays right of the classifier alone, and of RDC.
    function everyone() {
      const rows = element("tbody"), note = element("p", { role: "status" });
      const go = element("button", { type: "button", onclick: count }, "Attack all twenty");
      async function count() {
        state.run += 1;
        const id = state.run, lm = likelihoodMaximisation(), rdc = () => ["", 0];
        const kept = { clean: [0, 0], none: [0, 0], bpda: rdc(), exact: rdc(), smoothed: rdc(), union: rdc() };
        for (const [i, { x, y }] of lab.test.entries()) {
          const value = (at, gradient) => Lab.look(lab, at, y, gradient, lm).value, first = [value(x, "none"), value(x, "bpda")];
          let union = true;
          first.forEach((v, side) => { kept.clean[side] += v <= 0; });
          for (const key of Object.keys(ATTACKS)) {
            const points = [{ x, value: first[Number(key !== "none")] }];
            if (points[0].value <= 0) await climb(key, x, y, (p) => points.push(p));
            if (id !== state.run) return void (note.textContent = "Stopped.");
            const last = Lab.worst(points), holds = last.value <= 0;
            kept[key][key === "none" ? 0 : 1] += holds;
            if (key === "none") kept.none[1] += value(last.x, "bpda") <= 0;
            else union = union && holds;
          }
          kept.union[1] += union;
          note.textContent = `${i + 1} of ${lab.test.length} digits.`;
          const titles = { clean: "no attack", union: "RDC, all three" };
          const title = (key) => titles[key] || ATTACKS[key][0];
          rows.replaceChildren(...Object.entries(kept).map(([key, counts]) => tableRow(title(key), counts.map(String))));
        }
      }
      const counts = table("Digits that stay right", ["attack on", "classifier alone", "RDC"], rows);
      return element("div", { class: "lab-all" }, element("p", {}, go), note, counts);
    }

    const cells = (tag, texts, options = {}) => texts.map((text) => element(tag, options, text));
    const tableRow = (title, texts) => element("tr", {}, ...cells("th", [title], { scope: "row" }), ...cells("td", texts));
    const table = (caption, head, rows) => {
      const top = element("thead", {}, element("tr", {}, ...cells("th", head, { scope: "col" })));
      return element("table", {}, element("caption", {}, caption), top, rows);
    };

    if (full) buildFull();
    else buildSmall();
    select(FIRST, lab.test[FIRST].x, lab.test[FIRST].y);
    const wanted = /^#lab-(\d|all|attack)$/.exec(location.hash); // #lab-1: the first experiment, at once
    if (wanted && full && wanted[1] === "all") box.querySelector(".lab-all button").click();
    else if (wanted && full && EXPERIMENTS[wanted[1] - 1]) box.querySelectorAll("button")[wanted[1] - 1].click();
    else if (wanted) attack();
  }

  document.addEventListener("DOMContentLoaded", () => {
    const boxes = document.querySelectorAll(".lab");
    const lab = boxes.length ? Lab.open(LAB_DATA) : null;
    for (const box of boxes) start(box, lab);
  });
})();
