"""A long libvirt call that reports how far it is and can be interrupted."""

import contextlib
import threading
from collections.abc import Callable

import libvirt

from kvmctl.operations.progress import Progress

_LOOK_SECONDS = 0.3


def run_job(domain: libvirt.virDomain, call: Callable[[], object], text: str, progress: Progress) -> None:
    """Run ``call`` (a job on ``domain``) in a thread, so that Ctrl-C can abort it; its error is raised here.

    libvirt's calls hold Python's main thread until they return, and with it the signal handlers. On an
    interrupt the job is aborted and waited for, and then the interrupt goes on.
    """
    errors: list[BaseException] = []

    def work() -> None:
        try:
            call()
        except BaseException as error:  # noqa: BLE001 - carried to the thread that waits
            errors.append(error)

    thread = threading.Thread(target=work, name="libvirt-job", daemon=True)
    thread.start()
    progress.step(text)
    try:
        while thread.is_alive():
            thread.join(_LOOK_SECONDS)
            _report(domain, text, progress)
    except BaseException:
        with contextlib.suppress(libvirt.libvirtError):
            domain.abortJob()
        thread.join(30)
        raise
    if errors:
        raise errors[0]


def _report(domain: libvirt.virDomain, text: str, progress: Progress) -> None:
    try:
        stats = domain.jobStats(0)
    except libvirt.libvirtError:
        # Between the end of the job and the end of the VM.
        return
    total, done = stats.get(libvirt.VIR_DOMAIN_JOB_DATA_TOTAL), stats.get(libvirt.VIR_DOMAIN_JOB_DATA_PROCESSED)
    if total and done is not None:
        progress.amount(text, done, total)
