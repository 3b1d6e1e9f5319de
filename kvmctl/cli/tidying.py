"""What commands that change a VM's disks do first."""

from typing import TYPE_CHECKING

from kvmctl.cli import output
from kvmctl.cli.app import App

if TYPE_CHECKING:
    from kvmctl.connection import Hypervisor


def tidy(app: App, hypervisor: "Hypervisor", vm: str) -> None:
    """Before ``vm`` is changed: what a killed command left of its work on its disks goes, and is named."""
    from kvmctl.operations import recovery

    gone = recovery.finish(hypervisor, vm)
    if gone:
        output.info(app, f"tidied up after a kvmctl that was killed at work on {vm}: deleted {', '.join(gone)}")
