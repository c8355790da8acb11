"""String formats that the grammar library keeps too loosely, as patterns that hold exactly.

llguidance 1.9.1 takes 2021-02-29 for a date, seconds of 60 at any time of the day and `xn--` labels that are no names.
"""

from __future__ import annotations

__all__ = ["FORMATS", "PATTERN_OF_FORMAT"]

_ANY_YEAR = r"(\d{3}[1-9]|\d{2}[1-9]0|\d[1-9]00|[1-9]000)"
_LEAP_YEAR = r"(\d{2}(0[48]|[2468][048]|[13579][26])|(0[48]|[2468][048]|[13579][26])00)"
_DAY = r"((0[13578]|1[02])-(0[1-9]|[12]\d|3[01])|(0[469]|11)-(0[1-9]|[12]\d|30)|02-(0[1-9]|1\d|2[0-8]))"
_DATE = f"({_ANY_YEAR}-{_DAY}|{_LEAP_YEAR}-02-29)"
# Leap seconds exist, but only on some days; a fraction has at most nanoseconds.
_TIME = r"([01]\d|2[0-3]):[0-5]\d:[0-5]\d(\.\d{1,9})?(Z|[+-]([01]\d|2[0-3]):[0-5]\d)"
# Single hyphens inside a label: two together would begin an encoded international name.
_HOSTNAME = r"[A-Za-z0-9]+(-[A-Za-z0-9]+)*(\.[A-Za-z0-9]+(-[A-Za-z0-9]+)*)*"

# format -> what else a schema says of such a string
# source: RFC 3339 section 5.6, RFC 1123 section 2.1; a whole name of 63 characters keeps each label in its limit
PATTERN_OF_FORMAT: dict[str, dict[str, object]] = {
    "date": {"pattern": f"^{_DATE}$"},
    "time": {"pattern": f"^{_TIME}$"},
    "date-time": {"pattern": f"^{_DATE}T{_TIME}$"},
    "hostname": {"pattern": f"^{_HOSTNAME}$", "maxLength": 63},
}

# Those above, and those that the library keeps.
FORMATS = (*PATTERN_OF_FORMAT, "duration", "email", "ipv4", "ipv6", "uuid", "uri")
