"""Defences: what is done to an image before it is classified, and planted ones that only look robust."""
