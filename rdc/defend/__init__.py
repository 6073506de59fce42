"""Defences: what is done to an image before it is classified, and planted ones that only look robust."""

import rdc.classify as _classify  # noqa: F401  # first: it re-exports defences, which use its engine
