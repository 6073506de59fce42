// The laboratory of book/laboratory.md: the optimal denoiser of the stored digits and all that follows from it, in float64.
// It says in JavaScript what rdc.denoise.optimal, rdc.classify.diffusion, rdc.defend.likelihood, rdc.attack.pgd and
// rdc.certify.nearest say in Python; tests/test_browser_lab.py compares them. It needs no page: `require` works.
// An image is a Float64Array: x in [0, 1], or z = 2x - 1 in model units. sigma and the steps of the likelihood maximisation
// (LM) are in model units, radii in image units.
"use strict";

const Lab = (() => {
  // f of every entry, as a Float64Array.
  function map(a, f) {
    const found = new Float64Array(a.length);
    for (let i = 0; i < found.length; i += 1) found[i] = f(a[i], i);
    return found;
  }

  function dot(a, b) {
    let sum = 0;
    for (let i = 0; i < a.length; i += 1) sum += a[i] * b[i];
    return sum;
  }

  const add = (a, b, factor = 1) => map(a, (v, i) => v + factor * b[i]);
  const toModel = (x) => map(x, (v) => 2 * v - 1);
  const fromModel = (z) => map(z, (v) => (v + 1) / 2);
  const clamp = (v, low, high) => Math.min(Math.max(v, low), high);
  const zeros = (like) => new Float64Array(like.length);

  const bytes = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  const floats = (text) => Float64Array.from(new Float32Array(bytes(text).buffer));

  // The committed data (digits.js), ready to be used: images in rows, stored ones in model units, test ones in image units.
  function open(data) {
    const pixels = data.side * data.side;
    const row = (values, i) => values.slice(i * pixels, (i + 1) * pixels);
    const rows = (values) => Array.from({ length: values.length / pixels }, (_, i) => row(values, i));
    const images = (text) => rows(map(bytes(text), (v) => v / data.scale));
    const labels = Array.from(data.labels, Number), all = labels.map((_, i) => i);
    const noisy = (all) => rows(floats(all.eps)).map((eps, t) => ({ eps, sigma: all.sigma[t], weight: (all.weight || [])[t] }));
    return {
      side: data.side, pixels, labels, all,
      points: images(data.images).map(toModel),
      groups: Array.from({ length: 10 }, (_, k) => all.filter((i) => labels[i] === k)),
      test: images(data.test.images).map((x, i) => ({ x, y: Number(data.test.labels[i]) })),
      levels: noisy(data.levels), likelihood: noisy(data.likelihood), start: floats(data.start),
    };
  }

  // The optimal denoiser

  const TINY = 1e-24, NOISE = 1e-10; // weights, and relative slopes, that are lost in rounding

  // Posterior of the stored images of a class (all of them if label is null) given z: weights, mean, and the log of the sum
  // of exp(-|z - z_i|^2 / 2 sigma^2).
  function posteriorOf(lab, z, sigma, label = null) {
    const group = label === null ? lab.all : lab.groups[label], weights = new Float64Array(group.length);
    let top = -Infinity, sum = 0;
    for (let n = 0; n < group.length; n += 1) {
      const p = lab.points[group[n]];
      let d = 0;
      for (let j = 0; j < p.length; j += 1) d += (z[j] - p[j]) * (z[j] - p[j]);
      weights[n] = -d / (2 * sigma * sigma);
      top = Math.max(top, weights[n]);
    }
    for (let n = 0; n < weights.length; n += 1) sum += weights[n] = Math.exp(weights[n] - top);
    const mean = zeros(z);
    for (let n = 0; n < group.length; n += 1) {
      const s = (weights[n] /= sum), p = lab.points[group[n]];
      if (s > TINY) for (let j = 0; j < p.length; j += 1) mean[j] += s * p[j];
    }
    return { group, weights, mean, sigma, log: top + Math.log(sum) };
  }

  const denoise = (lab, z, sigma, label = null) => posteriorOf(lab, z, sigma, label).mean;

  // sum_i s_i (z_i - D) prod_v (z_i - D).v / sigma^2 over the directions v. One direction: the Jacobian of the denoiser times
  // v, which is the covariance over sigma^2. Two: the derivative of that product along the second, the third moment over sigma^4.
  function moment(lab, { group, weights, mean, sigma }, ...directions) {
    const total = zeros(mean), offsets = directions.map((v) => dot(mean, v));
    for (let n = 0; n < group.length; n += 1) {
      let s = weights[n];
      if (s <= TINY) continue;
      const p = lab.points[group[n]];
      for (let k = 0; k < directions.length; k += 1) {
        const v = directions[k];
        let along = -offsets[k];
        for (let j = 0; j < p.length; j += 1) along += p[j] * v[j];
        s *= along / (sigma * sigma);
      }
      for (let j = 0; j < p.length; j += 1) total[j] += s * (p[j] - mean[j]);
    }
    return total;
  }

  // The denoising loss |z - D(z + sigma eps, sigma, y)|^2: value, and the residual z - D and the posterior for its derivatives.
  function denoisingLoss(lab, z, { sigma, eps }, label = null) {
    const posterior = posteriorOf(lab, add(z, eps, sigma), sigma, label), residual = add(z, posterior.mean, -1);
    return { value: dot(residual, residual), residual, posterior };
  }

  // v - J v, with the Jacobian J of the denoiser; the gradient of a denoising loss is twice that of its residual.
  const complement = (lab, posterior, v) => add(v, moment(lab, posterior, v), -1);
  const lossGradient = (lab, { residual, posterior }) => map(complement(lab, posterior, residual), (v) => 2 * v);

  // The Hessian of a denoising loss times u.
  function lossHessian(lab, { residual, posterior }, u) {
    const first = complement(lab, posterior, complement(lab, posterior, u)), third = moment(lab, posterior, residual, u);
    return map(first, (v, i) => 2 * (v - third[i]));
  }

  // Likelihoods and classifiers

  // Exact log p_sigma(z | k) of every class k, in nats.
  function logDensity(lab, z, sigma) {
    const constant = 0.5 * lab.pixels * Math.log(2 * Math.PI * sigma * sigma);
    return map(lab.groups, (group, k) => posteriorOf(lab, z, sigma, k).log - Math.log(group.length) - constant);
  }

  function logSumExp(values) {
    const top = Math.max(...values);
    return top + Math.log(values.reduce((sum, v) => sum + Math.exp(v - top), 0));
  }

  const joint = (lab, z, sigma) => map(logDensity(lab, z, sigma), (v, k) => v + Math.log(lab.groups[k].length / lab.all.length));

  // Exact p(k | z) of every class.
  function posterior(lab, z, sigma) {
    const logs = joint(lab, z, sigma), total = logSumExp(logs);
    return map(logs, (v) => Math.exp(v - total));
  }

  // The best class but y, and max_{j != y} f_j - f_y: positive where the class of the largest logit is not y.
  function margin(logits, y) {
    const other = argmax(map(logits, (v, k) => (k === y ? -Infinity : v)));
    return { other, value: logits[other] - logits[y] };
  }

  const argmax = (values) => values.reduce((best, v, k) => (v > values[best] ? k : best), 0);

  // log p(z), log p(z | y) and the log-odds of y, log p(z | y) - max_k log p(z | k).
  function likelihoods(lab, z, y, sigma) {
    const logs = logDensity(lab, z, sigma);
    return { all: logSumExp(joint(lab, z, sigma)), own: logs[y], odds: -margin(logs, y).value };
  }

  // The losses |z - D|^2 of every class (rows) at every level of the classifier.
  const losses = (lab, z) => lab.groups.map((_, k) => map(lab.levels, (level) => denoisingLoss(lab, z, level, k).value));

  // Logits of the diffusion classifier: minus the weighted losses.
  const logits = (lab, z) => map(losses(lab, z), (row) => -dot(row, lab.levels.map((level) => level.weight)));

  // Logits and the gradient of the margin with respect to z.
  function marginSlope(lab, z, y) {
    const found = logits(lab, z), { other, value } = margin(found, y);
    let slope = zeros(z);
    for (const level of lab.levels) {
      for (const [label, sign] of [[other, -1], [y, 1]]) {
        slope = add(slope, lossGradient(lab, denoisingLoss(lab, z, level, label)), sign * level.weight);
      }
    }
    return { logits: found, value, slope };
  }

  // The radius (image units) in which the nearest neighbour certainly keeps the class y: 0 if it has another.
  function certificate(lab, x, y, norm = "Linf", candidates = 8) {
    const square = (i, at) => power(lab.points[i], at, 2), z = toModel(x), distance = lab.all.map((i) => square(i, z) / 4);
    const own = [...lab.groups[y]].sort((a, b) => distance[a] - distance[b]).slice(0, candidates);
    const others = lab.all.filter((i) => lab.labels[i] !== y);
    const size = (i, j) => (norm === "Linf" ? power(lab.points[j], lab.points[i], 1) : Math.sqrt(square(j, lab.points[i]))) / 2;
    const radius = (i) => others.reduce((least, j) => Math.min(least, (distance[j] - distance[i]) / (2 * size(i, j))), Infinity);
    return Math.max(0, ...own.map(radius));
  }

  // sum_j |a_j - b_j|^order, for order 1 or 2.
  function power(a, b, order) {
    let sum = 0;
    for (let j = 0; j < a.length; j += 1) sum += order === 1 ? Math.abs(a[j] - b[j]) : (a[j] - b[j]) * (a[j] - b[j]);
    return sum;
  }

  // Likelihood maximisation

  const BETA1 = 0.9, BETA2 = 0.999, EPS = 1e-8;
  const METHODS = {
    // Momentum iterative FGSM (Dong et al., 2018): steps along the sign, in a ball of radius eta, inside the box.
    sign: (eta, steps = 5) => ({
      steps, size: (2 * eta) / steps, budget: 2 * eta, clip: true, scale: 1, update: signUpdate, back: signBack,
    }),
    // As released by Chen et al. (2024): Adam on the mean over pixels, no ball, clamped once at the end.
    adam: (_, steps = 5) => ({
      steps, size: 0.1, budget: Infinity, clip: false, scale: 1 / 64, update: adamUpdate, back: adamBack,
    }),
  };

  // The sign of the numbers of a vector, 0 where only rounding would decide: most corners of a digit are the same in all images.
  function signOf(vector) {
    const least = NOISE * vector.reduce((top, v) => Math.max(top, Math.abs(v)), 0);
    return (v) => (Math.abs(v) > least ? Math.sign(v) : 0);
  }

  // m <- m - g / |g|_1 and sign(m).
  function signUpdate(g, memory) {
    const total = g.reduce((sum, v) => sum + Math.abs(v), 0) || 1, m = map(memory[0], (v, i) => v - g[i] / total);
    return { change: map(m, signOf(m)), memory: [m], total };
  }

  // From the gradients with respect to change and new memory to those with respect to g and old memory; the sign is blurred
  // to `width` times the mean of |m|, or has slope 0.
  function signBack(g, memory, n, made, toChange, toMemory, width) {
    const m = made.memory[0], blur = (width * m.reduce((sum, v) => sum + Math.abs(v), 0)) / m.length;
    const toM = map(m, (v, i) => toMemory[0][i] + (blur ? (toChange[i] * blur) / (Math.abs(v) + blur) ** 2 : 0));
    const along = dot(toM, g) / made.total ** 2, sign = signOf(g);
    return { toG: map(g, (v, i) => along * sign(v) - toM[i] / made.total), toMemory: [toM] };
  }

  // Adam: -first / (root + 1e-8), bias-corrected.
  function adamUpdate(g, memory, n) {
    const first = map(g, (v, i) => BETA1 * memory[0][i] + (1 - BETA1) * v);
    const second = map(g, (v, i) => BETA2 * memory[1][i] + (1 - BETA2) * v * v);
    const c1 = 1 - BETA1 ** (n + 1), root = map(second, (v) => Math.sqrt(v) / Math.sqrt(1 - BETA2 ** (n + 1)));
    return { change: map(first, (v, i) => -v / (c1 * (root[i] + EPS))), memory: [first, second], root };
  }

  // The same for Adam, whose 1e-8 grows by `width` times the mean root.
  function adamBack(g, memory, n, made, toChange, toMemory, width) {
    const [first, second] = made.memory, c1 = 1 - BETA1 ** (n + 1), c2 = Math.sqrt(1 - BETA2 ** (n + 1));
    const eps = EPS + (width * made.root.reduce((sum, v) => sum + v, 0)) / made.root.length;
    const toFirst = map(g, (_, i) => toMemory[0][i] - toChange[i] / (c1 * (made.root[i] + eps)));
    const slope = (i) => (toChange[i] * first[i]) / (c1 * (made.root[i] + eps) ** 2 * 2 * Math.sqrt(second[i]) * c2);
    const toSecond = map(g, (_, i) => toMemory[1][i] + (second[i] > 0 ? slope(i) : 0));
    const toG = map(g, (v, i) => (1 - BETA1) * toFirst[i] + 2 * (1 - BETA2) * v * toSecond[i]);
    return { toG, toMemory: [map(toFirst, (v) => BETA1 * v), map(toSecond, (v) => BETA2 * v)] };
  }

  // All steps of LM from z0: the iterates, the last one inside the box, and what the way back needs.
  function maximise(lab, z0, lm) {
    let z = z0, memory = [zeros(z0), zeros(z0)];
    const steps = [], iterates = [z0];
    for (let n = 0; n < lm.steps; n += 1) {
      const loss = denoisingLoss(lab, z, lab.likelihood[n]), g = map(lossGradient(lab, loss), (v) => v * lm.scale);
      const made = lm.update(g, memory, n), moved = add(z, made.change, lm.size);
      const after = map(moved, (v, i) => (lm.clip ? clamp(inBall(v, z0[i], lm.budget), -1, 1) : inBall(v, z0[i], lm.budget)));
      steps.push({ loss, g, memory, made, moved });
      iterates.push(after);
      [z, memory] = [after, made.memory];
    }
    return { z: map(z, (v) => clamp(v, -1, 1)), iterates, steps };
  }

  const inBall = (v, centre, budget) => clamp(v, centre - budget, centre + budget);

  // The gradient with respect to z0 of (slope . result of LM): exact for width 0, through blurred signs above.
  function maximiseBack(lab, z0, lm, { iterates, steps }, slope, width = 0) {
    let toZ = map(slope, (v, i) => (Math.abs(iterates[lm.steps][i]) <= 1 ? v : 0)), toMemory = [zeros(z0), zeros(z0)];
    const toStart = zeros(z0);
    for (let n = lm.steps - 1; n >= 0; n -= 1) {
      const { loss, g, memory, made, moved } = steps[n], free = zeros(z0);
      moved.forEach((v, i) => {
        const held = inBall(v, z0[i], lm.budget), passed = lm.clip && Math.abs(held) > 1 ? 0 : toZ[i];
        const edge = Math.abs(v - held) > 0 ? 0 : v === z0[i] - lm.budget || v === z0[i] + lm.budget ? 0.5 : 1; // a tie is shared
        free[i] = edge * passed;
        toStart[i] += (1 - edge) * passed;
      });
      const back = lm.back(g, memory, n, made, map(free, (v) => v * lm.size), toMemory, width);
      toZ = add(free, lossHessian(lab, loss, map(back.toG, (v) => v * lm.scale)));
      toMemory = back.toMemory;
    }
    return add(toZ, toStart);
  }

  // Attacks

  // What an attack sees at an image x: logits, margin, and the gradient of the margin with respect to x. The gradient of LM is
  // "none" (there is no LM), "bpda" (the identity), "exact" or "smoothed" (signs blurred to 0.3 of their mean size).
  function look(lab, x, y, gradient, lm) {
    const z = toModel(x), made = gradient === "none" ? null : maximise(lab, z, lm);
    const seen = marginSlope(lab, made ? made.z : z, y);
    let slope = seen.slope;
    const width = { exact: 0, smoothed: 0.3 }[gradient];
    if (width !== undefined) slope = maximiseBack(lab, z, lm, made, slope, width);
    return { logits: seen.logits, value: seen.value, slope: map(slope, (v) => 2 * v), after: made ? made.z : z };
  }

  const view = new DataView(new ArrayBuffer(8));

  // The neighbour of a positive or negative number, by one unit in the last place, towards another.
  function towards(v, target) {
    if (v === 0 || v === target) return v === 0 ? Math.sign(target) * Number.MIN_VALUE : v;
    view.setFloat64(0, v);
    view.setBigInt64(0, view.getBigInt64(0) + (Math.abs(target) > Math.abs(v) && v * target > 0 ? 1n : -1n));
    return view.getFloat64(0);
  }

  // The point of the ball of radius eps around the pixel x nearest to v, in [0, 1]; the bound holds after rounding, too.
  function project(v, x, eps) {
    let low = x - eps, high = x + eps;
    if (x - low > eps) low = towards(low, x);
    if (high - x > eps) high = towards(high, x);
    return clamp(clamp(v, low, high), 0, 1);
  }

  // Projected gradient descent (Linf), one point after the other: yields {step, x, ...look} for the start and each step.
  function* pgd(lab, x, y, { eps, steps, gradient, lm }) {
    const first = Math.max((4 * eps) / steps, eps / 10);
    let point = map(x, (v, i) => project(v + eps * lab.start[i], v, eps));
    for (let step = 0; ; step += 1) {
      const seen = look(lab, point, y, gradient, lm);
      yield { step, x: point, ...seen };
      if (step === steps) return;
      const size = first * (1 - (0.9 * step) / Math.max(steps - 1, 1));
      point = map(map(seen.slope, signOf(seen.slope)), (sign, i) => project(point[i] + size * sign, x[i], eps));
    }
  }

  // What PGD returns of its points, the image itself in front: that of the largest margin, which is misclassified if any is.
  const worst = (points) => points.reduce((best, p) => (p.value > best.value ? p : best));

  return {
    open, denoise, denoisingLoss, lossGradient, lossHessian, logDensity, posterior, likelihoods, losses, logits, marginSlope, certificate,
    METHODS, maximise, maximiseBack, look, pgd, worst, toModel, fromModel, argmax, margin, add, map,
  };
})();

if (typeof module === "object") module.exports = Lab;
