"""Named reliability cells: one fault each, under load, for Jobsboard and for plain Celery. See docs/cells.md."""
