"""Seeded process chaos on a real stack, judged by a history checker. Run: `SEED=1 make chaos`."""
