"""Cloister: one model from rows that never leave their owners, private inference, and a signed record of what was done."""

__version__ = "0.1.0"
