"""The options that say how a guest shall move, for ``migrate`` and ``host evacuate``."""

from collections.abc import Callable
from typing import Any

import click

from kvmctl.cli.moving import BANDWIDTH_UNIT
from kvmctl.cli.options import DURATION, F, Size, timeout

_OPTIONS: tuple[Callable[[Any], Any], ...] = (
    click.option(
        "--max-downtime",
        type=DURATION,
        default="30ms",
        show_default=True,
        metavar="TIME",
        help="The longest the guest may stand still.",
    ),
    timeout(),
    click.option(
        "--bandwidth", type=Size(BANDWIDTH_UNIT), metavar="SIZE", help="Send at most this much a second (32M)."
    ),
    click.option("--copy-storage", is_flag=True, help="Copy the disks that the hosts do not share, whole."),
    click.option("--copy-storage-inc", is_flag=True, help="Copy only their top overlay; the destination has the rest."),
    click.option("--shared-storage", is_flag=True, help="Take disks for shared where kvmctl cannot see that they are."),
    click.option(
        "--postcopy",
        type=click.Choice(("auto", "never", "now")),
        default="never",
        show_default=True,
        help="Whether the guest may go on over there while its memory still comes (auto: where nothing else helps).",
    ),
    click.option("--connections", type=click.IntRange(2, 64), metavar="N", help="Send the memory over N connections."),
    click.option("--compress", is_flag=True, help="Compress pages that changed (XBZRLE)."),
    click.option("--tls", is_flag=True, help="Encrypt what is sent; both hosts need certificates for QEMU."),
    click.option("--progress", is_flag=True, help="With -o json: a line a second on stderr about how far it is."),
)


def how_to_move(command: F) -> F:
    """All of them, each passed on by the name that ``moving.DEFAULTS`` has."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command
