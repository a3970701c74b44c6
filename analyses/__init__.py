"""strata's analyses: everything after the store. They read stores and never run a model."""
