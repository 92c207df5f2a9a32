"""Simulated scans and maps -> weights with their card: what `chiron train` does."""
