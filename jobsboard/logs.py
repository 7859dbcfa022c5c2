"""One log line per event: control characters of names and messages cannot forge a second line (S-24)."""

import logging


class LineFormatter(logging.Formatter):
    """Format as `time level logger message`, with line breaks and escapes written out."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 (name of the base class)
        line = super().formatMessage(record)
        return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)
