"""Settings for all tests."""

from __future__ import annotations

from hypothesis import settings

# Many properties run over keys and signatures that are fresh in every run: an example stored by an earlier run
# means something else in this one. So none are stored; a failure prints what is needed to reproduce it.
settings.register_profile("cloister", database=None, deadline=None, print_blob=True)
settings.load_profile("cloister")
