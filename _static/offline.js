// A page that is opened from a folder may not fetch others: the search then shows its hits without excerpts, and does not try.
"use strict";

if (location.protocol === "file:" && typeof DOCUMENTATION_OPTIONS !== "undefined") DOCUMENTATION_OPTIONS.SHOW_SEARCH_SUMMARY = false;
