"""What `manage.py dlq` does: look (`looking`), act on jobs (`acting`), make and follow plans (`planning`), print."""
