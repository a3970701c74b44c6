"""Settings of every test process."""

import os

from hypothesis import settings

# Read when torch, NumPy and Blosc are loaded: test models are tiny, and threads that wait for each other only cost.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# No test may depend on a hub, nor wait for one.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

# A slow machine is no failure, and the same examples everywhere make a failure one that can be repeated.
settings.register_profile("strata", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("strata")
