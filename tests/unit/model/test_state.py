import libvirt

from kvmctl.model import state


def test_the_words_are_libvirts_own() -> None:
    for number, word in enumerate(state.WORDS):
        assert getattr(libvirt, f"VIR_DOMAIN_{word.upper()}") == number
    assert len(state.WORDS) == libvirt.VIR_DOMAIN_PMSUSPENDED + 1
    assert state.word(99) == "nostate"
