"""kvmctl net: libvirt's networks."""

from typing import Any

import click

from kvmctl.cli import output
from kvmctl.cli.options import App, dry_run, everywhere, everywhere_and
from kvmctl.cli.output import Column

NAME = click.argument("name")
FORCE = click.option("--force", is_flag=True, help="Although VMs use it.")


@click.group()
@everywhere
def net() -> None:
    """Make and manage networks: NAT, routed, isolated, open, bridge, macvtap.

    \b
    Examples:
      kvmctl net list
      kvmctl net create lab --subnet 192.168.50.0/24
      kvmctl net leases lab
    """


@net.command("list")
@everywhere
@click.pass_obj
def list_networks(app: App) -> None:
    """List the networks.

    \b
    Examples:
      kvmctl net list
      kvmctl net list -o json
    """
    from kvmctl.operations import networks

    hypervisor = app.connect()
    output.show_list(
        app,
        networks.listing(hypervisor),
        [
            Column("name", "NAME"),
            Column("mode", "MODE"),
            Column("bridge", "BRIDGE"),
            Column("subnet", "SUBNET"),
            Column("dhcp", "DHCP", wide=True),
            Column("devices", "DEVICES", wide=True),
            Column("active", "ACTIVE"),
            Column("autostart", "AUTOSTART"),
            Column("persistent", "PERSISTENT", wide=True),
        ],
        empty=f"no networks on {hypervisor.uri}; 'kvmctl net create' makes one",
    )


@net.command()
@click.argument("name")
@click.option(
    "--mode",
    type=click.Choice(("nat", "route", "isolated", "open", "bridge", "macvtap")),
    default="nat",
    show_default=True,
    help="How its guests reach the world.",
)
@click.option("--subnet", "subnets", multiple=True, metavar="CIDR", help="IPv4 or IPv6; a free one by default.")
@click.option("--dhcp", multiple=True, metavar="FIRST-LAST", help="The DHCP range; or 'none'. By default all of it.")
@click.option("--reserve", multiple=True, metavar="MAC=IP[,NAME]", help="An address kept for one card.")
@click.option("--domain", metavar="DNS", help="The DNS domain of its guests.")
@click.option("--bridge", metavar="BR", help="The bridge to join (--mode bridge) or to make.")
@click.option("--dev", "devices", multiple=True, metavar="DEV", help="The host's device to go out by; several: a pool.")
@click.option(
    "--macvtap-mode",
    type=click.Choice(("bridge", "vepa", "private", "passthrough")),
    help="How guests on one device reach each other (for --mode macvtap).",
)
@click.option("--autostart/--no-autostart", default=True, show_default=True, help="Start it whenever the host boots.")
@click.option("--start/--no-start", default=True, show_default=True, help="Start it now.")
@dry_run
@everywhere
@click.pass_obj
def create(
    app: App,
    name: str,
    mode: str,
    subnets: tuple[str, ...],
    dhcp: tuple[str, ...],
    reserve: tuple[str, ...],
    domain: str | None,
    bridge: str | None,
    devices: tuple[str, ...],
    macvtap_mode: str | None,
    autostart: bool,
    start: bool,
    dry_run: bool,
) -> None:
    """Make a network and start it.

    \b
    Examples:
      kvmctl net create lab
      kvmctl net create lab --subnet 192.168.50.0/24 --dhcp 192.168.50.100-192.168.50.200
      kvmctl net create six --subnet 10.6.0.0/24 --subnet fd00:6::/64
      kvmctl net create quiet --mode isolated
      kvmctl net create office --mode bridge --bridge br0
      kvmctl net create direct --mode macvtap --dev eth1 --macvtap-mode private
      kvmctl net create nics --mode macvtap --macvtap-mode passthrough --dev eth1 --dev eth2
    """
    from kvmctl.operations import networks

    hypervisor = app.connect()
    ranges = None if not dhcp else tuple(text for text in dhcp if text != "none")
    plan = networks.plan(
        hypervisor,
        networks.Request(name, mode, subnets, ranges, reserve, bridge, devices, macvtap_mode, domain, autostart, start),
    )
    if dry_run:
        _show_plan(app, plan.network.name, plan.xml)
        return
    made = networks.create(hypervisor, plan)
    output.show_one(app, made, lambda: _made(made))
    if made["mode"] == "macvtap":
        from kvmctl.preflight.nics import MACVTAP_NOTE

        output.info(app, f"note: {MACVTAP_NOTE}")


def _show_plan(app: App, name: str, xml: str) -> None:
    if app.output in ("json", "yaml"):
        output.show_one(app, {"name": name, "changed": False, "xml": xml})
    else:
        output.show_text(xml)


def _made(row: dict[str, Any]) -> str:
    where = f", {row['subnet']}" if row["subnet"] else ""
    return f"network {row['name']} made ({row['mode']}{where}){', running' if row['active'] else ''}"


@net.command()
@NAME
@everywhere
@click.pass_obj
def info(app: App, name: str) -> None:
    """Show one network.

    \b
    Examples:
      kvmctl net info default
    """
    from kvmctl.operations import networks

    found = networks.info(app.connect(), name)
    output.show_one(app, found, lambda: _details(found))
    if not app.machine_readable:
        for problem in found["problems"] or ():
            output.warn(app, problem)


def _details(found: dict[str, Any]) -> list[tuple[str, Any]]:
    rows = [(key.replace("_", " "), found[key]) for key in ("name", "uuid", "mode", "bridge")]
    rows += [(key.replace("_", " "), found[key]) for key in ("devices", "macvtap_mode") if found[key]]
    rows += [(key, found[key]) for key in ("subnets", "gateways", "dhcp", "domain")]
    reservations = [
        " ".join(str(part) for part in (h["mac"], h["ip"], h["name"]) if part) for h in found["reservations"]
    ]
    rows.append(("reservations", reservations))
    rows += [(key, found[key]) for key in ("guests", "active", "autostart", "persistent")]
    return rows


@net.command()
@NAME
@everywhere
@click.pass_obj
def start(app: App, name: str) -> None:
    """Start a network.

    \b
    Examples:
      kvmctl net start default
    """
    from kvmctl.operations import networks

    found = networks.start(app.connect(), name)
    _acted(app, found, "started", "was running already")
    if found["reattached"]:
        output.info(app, f"in it again: {', '.join(found['reattached'])}")


@net.command()
@NAME
@FORCE
@everywhere
@click.pass_obj
def stop(app: App, name: str, force: bool) -> None:
    """Stop a network.

    \b
    Examples:
      kvmctl net stop lab
    """
    from kvmctl.operations import networks

    _acted(app, networks.stop(app.connect(), name, force=force), "stopped", "was not running")


@net.command()
@NAME
@FORCE
@everywhere
@click.pass_obj
def delete(app: App, name: str, force: bool) -> None:
    """Stop a network and remove its definition.

    \b
    Examples:
      kvmctl net delete lab
    """
    from kvmctl.operations import networks

    _acted(app, networks.delete(app.connect(), name, force=force), "deleted", "")


def _acted(app: App, found: dict[str, Any], done: str, already: str) -> None:
    output.show_one(app, found, lambda: f"network {found['name']} {done if found['changed'] else already}")


@net.command()
@click.argument("name", required=False)
@everywhere
@click.pass_obj
def leases(app: App, name: str | None) -> None:
    """List DHCP leases, of one network or of all.

    \b
    Examples:
      kvmctl net leases
      kvmctl net leases default -o json
    """
    from kvmctl.operations import networks

    output.show_list(
        app,
        networks.leases(app.connect(), name),
        [
            Column("network", "NETWORK"),
            Column("mac", "MAC"),
            Column("ip", "ADDRESS"),
            Column("hostname", "HOST NAME"),
            Column("vm", "VM"),
            Column("reserved", "RESERVED"),
            Column("expires", "EXPIRES", wide=True),
            Column("client_id", "CLIENT ID", wide=True),
        ],
        name="ip",
        empty="no leases",
    )


@net.command("map")
@everywhere_and("svg", "dot")
@click.pass_obj
def draw_map(app: App) -> None:
    """Draw the host, its networks, bridges and devices, and who is in them.

    As a tree in the terminal; -o svg and -o dot (for Graphviz) make a picture.

    \b
    Examples:
      kvmctl net map
      kvmctl net map -o svg > networks.svg
      kvmctl net map -o dot | dot -Tpng > networks.png
    """
    from kvmctl.model import net_map
    from kvmctl.operations import net_map as operation

    root = operation.draw(app.connect())
    if app.output in ("json", "yaml", "name"):
        output.show_one(app, root.as_dict())
    else:
        drawn = {"svg": net_map.as_svg, "dot": net_map.as_dot}.get(app.output)
        output.show_text(drawn(root) if drawn is not None else net_map.as_text(root, output.columns()))
