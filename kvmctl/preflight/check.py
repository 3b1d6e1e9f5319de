"""The result of one read-only look at something that must hold."""

from collections.abc import Iterable
from typing import Any, Literal, NamedTuple

Level = Literal["ok", "warn", "fail", "refused", "unknown"]


class Check(NamedTuple):
    """One thing that was looked at.

    ``level``: ``ok``, ``warn`` (works, but), ``fail`` (host check: does not work), ``refused``
    (migration: cannot go), ``unknown`` (could not be seen from here; never worsens a verdict).
    ``detail`` is what was seen, ``hint`` the remedy, as a command where there is one.
    """

    name: str
    level: Level
    detail: str
    hint: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """``{"name", "level", "detail", "hint"}``."""
        return self._asdict()


def worst(checks: Iterable[Check]) -> Literal["ok", "warn", "fail", "refused"]:
    """The verdict over all of them."""
    levels = {check.level for check in checks}
    if "refused" in levels:
        return "refused"
    if "fail" in levels:
        return "fail"
    return "warn" if "warn" in levels else "ok"
