"""Sealed models: made, kept and opened here; plain ones are read by `cloister.learning.modelfiles`."""
