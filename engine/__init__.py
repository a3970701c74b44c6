"""strata's engine: everything up to the store (sources, prompts, plan, models, capture, store)."""

__version__ = "0.1.0"
