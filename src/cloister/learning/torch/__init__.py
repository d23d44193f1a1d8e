"""Modules of torch under differential privacy; needs the extra `torch`."""
