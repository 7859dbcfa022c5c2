"""Run candidate code on historical payloads, in a sandbox, and hold what it does against what happened then.

`run.run` does it; `manage.py replay_test` is its face. Nothing here writes to the database, and nothing that the
candidate writes stays.
"""
