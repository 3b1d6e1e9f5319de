from kvmctl.cli import lifecycle, wait
from kvmctl.operations import waiting


def test_the_conditions_offered_are_those_there_are() -> None:
    assert wait.CONDITIONS == waiting.CONDITIONS
    assert set(lifecycle.CONDITIONS) <= set(waiting.CONDITIONS)
