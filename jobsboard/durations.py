"""Durations in words, the same on pages, in alerts and in what they send out."""


def duration(seconds: float) -> str:
    """Say a duration in at most two units, cut off and never rounded up: 420ms, 9.4s, 6m 12s, 2h 05m, 3d 4h."""
    if seconds < 0:
        return f"-{duration(-seconds)}"
    milliseconds = int(round(seconds * 1000, 6))
    if milliseconds < 1000:
        return f"{milliseconds}ms" if milliseconds or not seconds else "<1ms"
    if milliseconds < 10_000:
        return f"{milliseconds // 100 / 10:g}s"
    whole = milliseconds // 1000
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return _two(whole, 60, "m", 1, "s")
    if whole < 86_400:
        return _two(whole, 3600, "h", 60, "m")
    return _two(whole, 86_400, "d", 3600, "h")


def _two(whole: int, big: int, big_unit: str, small: int, small_unit: str) -> str:
    rest = whole % big // small
    tail = f"{rest}{small_unit}" if big_unit == "d" else f"{rest:02d}{small_unit}"
    return f"{whole // big}{big_unit} {tail}" if rest else f"{whole // big}{big_unit}"
