"""Runs: what decides their numbers, rows that survive a kill, workers, records, statistics and the verdict."""
