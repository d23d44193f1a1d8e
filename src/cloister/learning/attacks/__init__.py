"""Attacks on models and on what a hub sees, to test claims of privacy."""
