import pytest

from kvmctl.errors import UsageProblem
from kvmctl.model.forward import parse_forward, written
from kvmctl.model.metadata import Forward


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("8080:80", (Forward("tcp", 8080, 80),)),
        ("8080:80/tcp", (Forward("tcp", 8080, 80),)),
        ("53:5353/udp", (Forward("udp", 53, 5353),)),
        ("127.0.0.1:2222:22", (Forward("tcp", 2222, 22, "127.0.0.1"),)),
        ("[::1]:2222:22", (Forward("tcp", 2222, 22, "::1"),)),
        ("5000-5001:6000-6001", (Forward("tcp", 5000, 6000), Forward("tcp", 5001, 6001))),
    ],
)
def test_reads_what_users_write(text: str, expected: tuple[Forward, ...]) -> None:
    assert parse_forward(text) == expected
    assert parse_forward(written(expected[0])) == (expected[0],)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "80",
        "0:80",
        "80:0",
        "65536:80",
        "-1:80",
        "80:80/sctp",
        "80:80/",
        "a:b",
        "1.2.3:80:80",
        "[::1:80:80",
        "5001-5000:5001-5000",
        "5000-5001:6000",
        "1-65535:1-65535",
        "80:80:80:80",
        "host:80:80",
        "8 0:80",
        "٨٠:80",
    ],
)
def test_refuses_nonsense(text: str) -> None:
    with pytest.raises(UsageProblem):
        parse_forward(text)
