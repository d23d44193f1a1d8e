"""Programs that use the library; those with data of their own lie in folders, run with python -m."""
