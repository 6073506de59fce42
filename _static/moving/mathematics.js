// The radius of randomized smoothing from counts, as in rdc.certify.clopper_pearson; a test compares the two.
"use strict";

const Moving = (() => {
  // The x in [low, high] where a rising function takes a value.
  function solve(rising, value, low, high) {
    for (let i = 0; i < 80; i += 1) {
      const middle = (low + high) / 2;
      if (rising(middle) < value) low = middle;
      else high = middle;
    }
    return (low + high) / 2;
  }

  // log Gamma(x), x > 0: Stirling's series, from x >= 10.
  function logGamma(x) {
    let shift = 0;
    for (; x < 10; x += 1) shift += Math.log(x);
    const series = 1 / (12 * x) - 1 / (360 * x ** 3) + 1 / (1260 * x ** 5) - 1 / (1680 * x ** 7);
    return (x - 0.5) * Math.log(x) - x + 0.5 * Math.log(2 * Math.PI) + series - shift;
  }

  // Regularised incomplete beta function: its continued fraction, by the method of Lentz.
  function beta(x, a, b) {
    if (x <= 0 || x >= 1) return x <= 0 ? 0 : 1;
    if (x > (a + 1) / (a + b + 2)) return 1 - beta(1 - x, b, a);
    const front = Math.exp(a * Math.log(x) + b * Math.log1p(-x) + logGamma(a + b) - logGamma(a) - logGamma(b)) / a;
    let c = 1, d = 1 / (1 - ((a + b) * x) / (a + 1)), sum = d;
    for (let m = 1; m < 10000; m += 1) {
      const even = (m * (b - m) * x) / ((a + 2 * m - 1) * (a + 2 * m));
      d = 1 / (1 + even * d);
      c = 1 + even / c;
      sum *= d * c;
      const odd = (-(a + m) * (a + b + m) * x) / ((a + 2 * m) * (a + 2 * m + 1));
      d = 1 / (1 + odd * d);
      c = 1 + odd / c;
      sum *= d * c;
      if (Math.abs(d * c - 1) < 1e-15) break;
    }
    return front * sum;
  }

  // Lower bound of Clopper and Pearson for a probability: k of n, too high with probability alpha.
  function lower(k, n, alpha) {
    if (k === 0 || k === n) return k ? alpha ** (1 / n) : 0;
    return solve((p) => beta(p, k, n - k + 1), alpha, 0, 1);
  }

  // The normal distribution function for x >= 0, by a series without cancellation.
  function phi(x) {
    let term = x, sum = x;
    for (let i = 3; term > 1e-17 * sum; i += 2) {
      term *= (x * x) / i;
      sum += term;
    }
    return 0.5 + (sum * Math.exp((-x * x) / 2)) / Math.sqrt(2 * Math.PI);
  }

  // Certified L2 radius of k of n draws with noise sigma; 0 where nothing is certified.
  function radius(k, n, sigma, alpha) {
    const p = lower(k, n, alpha);
    return p > 0.5 ? sigma * solve(phi, p, 0, 8) : 0;
  }

  return { lower, radius };
})();

if (typeof module === "object") module.exports = Moving;
