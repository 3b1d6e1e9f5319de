"""The options that create and set share: what is tuned of a VM beside its devices."""

import click

from kvmctl.cli.options import DURATION, F

_OPTIONS = (
    click.option("--pin", "pins", multiple=True, metavar="VCPU:CPUS", help="Host CPUs for a vCPU: 0:2-3, or 0:all."),
    click.option("--cpu-shares", type=click.IntRange(2, 262144), metavar="N", help="Its weight when CPUs are short."),
    click.option(
        "--cpu-limit", type=click.IntRange(0, 100), metavar="PERCENT", help="Of a CPU, for each vCPU; 0: none."
    ),
    click.option(
        "--hugepages/--no-hugepages", default=None, help="Back its memory with huge pages, from its start on."
    ),
    click.option("--memory-limit", metavar="hard=SIZE,soft=SIZE", help="Of the host's memory; 0 takes one away."),
    click.option("--numa", metavar="CELLS[,host=NODES]", help="NUMA nodes in the guest, from its start on; 0: none."),
    click.option("--boot", metavar="DEVICE[,...]", help="disk, cdrom, network, targets or MACs, from its start on."),
    click.option(
        "--autostart-order", type=click.IntRange(0, 99999), metavar="N", help="Its place as the host boots; 0: none."
    ),
    click.option("--autostart-delay", type=DURATION, metavar="TIME", help="How long after it the next one starts."),
)


def tuning_options(command: F) -> F:
    """Give ``command`` all of them; kvmctl.model.tuned.from_words() reads what was given."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command
