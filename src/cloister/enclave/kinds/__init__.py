"""The kinds of evidence; one module each, all with the same `verify`."""
