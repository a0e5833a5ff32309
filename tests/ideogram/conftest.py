"""Hypothesis without its stopwatch: how fast an example runs says nothing about whether it is right."""

from hypothesis import HealthCheck, settings

settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")
