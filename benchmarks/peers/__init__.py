"""Peers, each run by an interpreter of its own that `make bench-setup` makes under `.peers/`."""
