"""The scripts that run inside a copy are plain POSIX shell."""

import shutil
import subprocess
from importlib.resources import files

import pytest


@pytest.mark.parametrize("name", ["fork-identity.sh", "fork-keys.sh", "clone-identity.sh"])
@pytest.mark.parametrize("shell", ["dash", "bash", "busybox"])
def test_every_shell_takes_it(name: str, shell: str) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    command = [shell, "sh"] if shell == "busybox" else [shell]
    script = files("kvmctl").joinpath(f"data/{name}").read_bytes()
    checked = subprocess.run([*command, "-n"], input=script, capture_output=True)
    assert (checked.returncode, checked.stderr) == (0, b"")
