"""A guest whose state was saved outlives its host's switching off, processes and all."""

from collections.abc import Callable

import pytest

from tests.lab import images
from tests.lab.guest import Guest
from tests.lab.lab import Lab
from tests.lab.test_snapshots import BUMP, COUNTER, Open, create, read, write


@pytest.mark.usefixtures("leaves_nothing")
def test_a_saved_guest_goes_on_after_its_host_was_off(
    lab: Lab, tiny: images.Tiny, console: Open, vm_name: Callable[[str], str]
) -> None:
    vm, host = vm_name("saved"), lab.a
    file = f"/var/lib/libvirt/images/{vm}.save"
    create(host, tiny, vm)
    guest = console(host, vm).ready()
    guest.run(COUNTER)
    write(guest, "before")

    def goes_on(guest: Guest, count: int) -> None:
        assert (read(guest), guest.run("cat /tmp/count")) == ("before", str(count))
        guest.run(BUMP)
        assert guest.run("cat /tmp/count") == str(count + 1)
        guest.close()

    goes_on(guest, 0)
    host.kvmctl("save", vm, file)
    lab.reboot(host)
    host.kvmctl("restore", file)
    goes_on(console(host, vm).ready(), 1)
    host.run(["rm", file])

    # Kept by libvirt, it is what the next start goes on from.
    host.kvmctl("save", vm)
    lab.reboot(host)
    host.kvmctl("start", vm)
    goes_on(console(host, vm).ready(), 2)
    host.kvmctl("delete", vm, "-y")
