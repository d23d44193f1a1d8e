"""Six institutes learn to answer questions about diseases."""
