"""One scan, step by step: from a scanner export to a susceptibility map and its report."""

__version__ = "0.1.0"
