import pytest

from kvmctl.errors import UsageProblem
from kvmctl.operations.copy import Place, place


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("vm:/etc/hosts", Place("vm", "/etc/hosts")),
        ("vm:C:\\x", Place("vm", "C:\\x")),
        ("./a:b", Place(None, "./a:b")),
        ("/x:y", Place(None, "/x:y")),
        (":x", Place(None, ":x")),
        ("plain", Place(None, "plain")),
    ],
)
def test_which_end_is_meant(text: str, found: Place) -> None:
    assert place(text) == found


def test_a_relative_path_in_the_guest_is_refused() -> None:
    with pytest.raises(UsageProblem, match="absolute"):
        place("vm:etc/hosts")
