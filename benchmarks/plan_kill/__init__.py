"""A replay plan under fire: processes and PostgreSQL are killed while it goes on. Run: `make plan-kill`."""
