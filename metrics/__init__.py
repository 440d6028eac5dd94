"""Measuring a run: a sampler in a thread of its own, and the run log it writes. The log's schema is docs/metrics.md."""

from metrics.sampler import Sampler

__all__ = ["Sampler"]
