"""Figures of this project, and of its peers where `make bench-setup` installed them.

Each module prints one JSON object. All run on one thread: two OpenMP threads collapse as soon as anything
else runs, so the variables are set here, before numpy is first imported, unless the caller set them.
"""

import os

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_name, "1")
