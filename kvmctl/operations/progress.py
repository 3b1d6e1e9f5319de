"""How an operation says what it is doing, without knowing of any screen."""


class Progress:
    """What long work says while it runs. This one says nothing; the command line hands in one that draws."""

    def step(self, text: str) -> None:
        """What is being done now, in a few words."""

    def amount(self, text: str, done: int, total: int | None, detail: str = "", speed: int | None = None) -> None:
        """``done`` bytes of ``total`` (None where it is not known) of what ``text`` names.

        ``text`` stays the same while the work does; ``detail`` is what else there is to say in this moment. ``speed``,
        in bytes a second, where it is not that at which ``done`` grows.
        """

    def warn(self, text: str) -> None:
        """Something the user should know, though the work goes on."""
