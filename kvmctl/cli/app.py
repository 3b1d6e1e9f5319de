"""What the options that work everywhere were set to. Without click, which a plain ``list`` does not load."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from kvmctl.connection import Hypervisor
    from kvmctl.preflight.asking import Asking

OUTPUTS = ("table", "wide", "json", "yaml", "name")


class App:
    """The choices of one call of kvmctl; click carries it as ``ctx.obj``. A plain class: dataclasses load slowly."""

    def __init__(
        self,
        uri: str | None = None,
        output: str = "table",
        color: str = "auto",
        quiet: bool = False,
        debug: bool = False,
        yes: bool = False,
    ) -> None:
        self.uri = uri
        self.output = output
        self.color = color
        self.quiet = quiet
        self.debug = debug
        self.yes = yes
        # What a failure of no special kind exits with; a command whose 1 means something else sets another.
        self.failure_code = 1
        self._opened: list[Hypervisor] = []

    @property
    def machine_readable(self) -> bool:
        """Whether the output is for a program, so that tables and pictures of it are not wanted."""
        return self.output in ("json", "yaml", "name")

    def connect(self, *, events: bool = False) -> "Hypervisor":
        """Open the hypervisor the user chose; it is closed when the command ends."""
        from kvmctl.connection import connect

        hypervisor = connect(self.uri, events=events)
        self._opened.append(hypervisor)
        return hypervisor

    def connect_ahead(
        self, *, events: bool = False, ask: "Callable[[Hypervisor], object] | None" = None
    ) -> "Asking[Hypervisor]":
        """What connect() does, begun in a thread: for a command that has much to import, as libvirt answers meanwhile.

        Not before the command line is known to be good, for connecting may start programs. ``ask`` asks there
        at once what will be needed first and is remembered.
        """
        from kvmctl.preflight.asking import Asking

        def open_() -> "Hypervisor":
            hypervisor = self.connect(events=events)
            if ask is not None:
                ask(hypervisor)
            return hypervisor

        return Asking(open_)

    def close(self) -> None:
        """Close what connect() opened."""
        while self._opened:
            self._opened.pop().close()
