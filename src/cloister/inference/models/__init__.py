"""Models as files: `files` reads them from a plain folder; sealed ones are opened elsewhere in this room."""
