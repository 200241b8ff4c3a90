"""What all tests share: hypothesis without a clock, since the machines that run them are shared."""

import os

# One thread for each worker of pytest-xdist: two that share two cores wait for each other far longer than they work.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from hypothesis import HealthCheck, settings

settings.register_profile("patchclamp", deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True)
settings.load_profile("patchclamp")
