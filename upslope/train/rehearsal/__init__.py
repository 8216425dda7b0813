"""A run on ranks that are not there: `plan.rehearse`."""
