"""Settings of every test process."""

import os

from hypothesis import settings

# Read when torch, NumPy and Blosc are loaded: test models are tiny, and threads that wait for each other only cost.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Tests are of the CPU, which every machine has, and compare bits; with STRATA_TEST_GPU=0 run those of a GPU
# alone (tests/engine/capture/test_host_copies.py).
os.environ["CUDA_VISIBLE_DEVICES"] = os.environ.get("STRATA_TEST_GPU", "")
# No test may depend on a hub, nor wait for one.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

# A slow machine is no failure, and the same examples everywhere make a failure one that can be repeated.
settings.register_profile("strata", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("strata")
