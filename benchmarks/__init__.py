"""Figures of this project, and of its peers where `make bench-setup` installed them. Each module prints one JSON object."""
