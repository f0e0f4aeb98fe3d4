"""Studies: many runs of a few configurations, over seeds, and what they come to in one table."""

from bagssl_jax.studies.plan import Comparison, Measure, Selection, Study, Variant

__all__ = ['Comparison', 'Measure', 'Selection', 'Study', 'Variant']
