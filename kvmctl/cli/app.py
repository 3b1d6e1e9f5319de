"""What the options that work everywhere were set to. Without click, which a plain ``list`` does not load."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from kvmctl.connection import Hypervisor

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

    def connect_ahead(self, *, events: bool = False) -> "Callable[[], Hypervisor]":
        """Begin what connect() does in a thread; the callable waits for it, and returns or raises as connect() does.

        For a command that has much to import: libvirt answers meanwhile. Not before the command line is known to be
        good, for connecting may start programs.
        """
        from threading import Thread

        opened: list[Hypervisor] = []
        failed: list[BaseException] = []

        def open_() -> None:
            try:
                opened.append(self.connect(events=events))
                # What every new VM and every move needs first; asked again it costs nothing.
                _ = opened[0].capabilities
            except BaseException as error:  # noqa: BLE001 - handed to the thread that waits
                failed.append(error)

        thread = Thread(target=open_, name="connecting", daemon=True)
        thread.start()

        def wait() -> "Hypervisor":
            thread.join()
            if failed:
                raise failed[0]
            return opened[0]

        return wait

    def close(self) -> None:
        """Close what connect() opened."""
        while self._opened:
            self._opened.pop().close()
