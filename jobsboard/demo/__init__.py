"""The demo, launch week: sign-ups send mails, sync contacts, get scores; providers that misbehave in a storm.

Real parts: an SMTP server, a CRM over HTTP that calls back, a billing partner with books of its own. Each keeps its
own log, so that what the board says can be held against it (`reconcile`).
"""
