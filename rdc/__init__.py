"""Robust diffusion classifiers: the code behind the book."""
