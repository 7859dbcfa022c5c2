"""The demo: sample contracts, real mails to a mail server that misbehaves at times, live traffic."""
