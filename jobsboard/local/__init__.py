"""The local stack: PostgreSQL and Valkey from their wheels, and this checkout's processes beside them.

Not here: anything that a deployment needs. Nothing in this package imports Django; `manage.py` runs as a subprocess.
"""
