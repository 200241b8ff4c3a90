"""What all tests share: hypothesis without a clock, since the machines that run them are shared."""

from hypothesis import HealthCheck, settings

settings.register_profile("patchclamp", deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True)
settings.load_profile("patchclamp")
