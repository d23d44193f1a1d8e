"""The command line: one file a command, `main` to find them, `common` for what they share."""
