// Old addresses: a name of the package that is not on this page is looked for behind the page's links to modules.
"use strict";

document.addEventListener("DOMContentLoaded", () => {
  const hash = decodeURIComponent(location.hash.slice(1)), wanted = hash.replace(/^module-/, "");
  if (!wanted.startsWith("rdc.") || document.getElementById(hash)) return;
  const module = (link) => decodeURIComponent(link.hash).replace("#module-", "");
  const fits = [...document.querySelectorAll('a[href*="#module-rdc"]')].filter((link) => `${wanted}.`.startsWith(`${module(link)}.`));
  const best = fits.sort((a, b) => module(b).length - module(a).length)[0];
  if (best) location.replace(`${best.href.split("#")[0]}#${hash}`);
});
