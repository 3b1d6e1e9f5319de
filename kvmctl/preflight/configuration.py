"""kvmctl's own configuration file: thresholds, and nothing that libvirt could know.

``$XDG_CONFIG_HOME/kvmctl/config.toml`` (``~/.config`` without that), else ``/etc/kvmctl/config.toml``::

    [overcommit]
    cpu_ratio = 4.0      # vCPUs of running guests for each CPU
    memory_ratio = 1.0   # memory promised to running guests, of the host's
    strict = false       # refuse in place of warning
"""

import os
from pathlib import Path
from typing import Any, NamedTuple

from kvmctl.errors import UsageProblem

SYSTEM = Path("/etc/kvmctl/config.toml")


class Thresholds(NamedTuple):
    """Ratios of what guests were promised to what the host has, and whether going past them is refused."""

    # More vCPUs a CPU than this and busy guests feel that they wait for one another.
    cpu_ratio: float = 4.0
    memory_ratio: float = 1.0
    strict: bool = False


def thresholds() -> Thresholds:
    """Those of the first configuration file there is; the defaults where there is none.

    Raises UsageProblem for a file that is no TOML, has a key kvmctl does not know, or a value of the wrong kind.
    """
    for path in (_own(), SYSTEM):
        try:
            text = path.read_text(encoding="utf-8")
        except FileNotFoundError:
            continue
        except (OSError, UnicodeDecodeError) as error:
            raise UsageProblem(f"the configuration file {path} cannot be read: {error}") from None
        # Imported late: where there is no such file nobody should pay for it.
        import tomllib

        try:
            return _parsed(tomllib.loads(text))
        except (tomllib.TOMLDecodeError, ValueError) as error:
            raise UsageProblem(f"the configuration file {path} is wrong: {error}", "see docs/overcommit.md") from None
    return Thresholds()


def _own() -> Path:
    base = os.environ.get("XDG_CONFIG_HOME")
    return (Path(base) if base else Path.home() / ".config") / "kvmctl" / "config.toml"


def _parsed(content: dict[str, Any]) -> Thresholds:
    unknown = set(content) - {"overcommit"}
    if unknown:
        raise ValueError(f"there is no section {min(unknown)!a}")
    section = content.get("overcommit", {})
    if not isinstance(section, dict):
        raise ValueError("overcommit is a section, [overcommit]")
    given: dict[str, Any] = {}
    for key, value in section.items():
        if key == "strict":
            if not isinstance(value, bool):
                raise ValueError("strict is true or false")
        elif key in ("cpu_ratio", "memory_ratio"):
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 10**6:
                raise ValueError(f"{key} is a number above 0")
        else:
            raise ValueError(f"[overcommit] has no {key!a}")
        given[key] = value
    return Thresholds(**given)
