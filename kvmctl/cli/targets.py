"""One verb over several VMs: names, patterns, --all, --parallel; one result a target."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from kvmctl.cli import output
from kvmctl.cli.options import App
from kvmctl.errors import Interrupted, KvmctlError, Partial, UsageProblem

if TYPE_CHECKING:
    from kvmctl.connection import Hypervisor


def resolve(hypervisor: "Hypervisor", names: Sequence[str], all_: bool) -> tuple[list[str], bool]:
    """The VMs meant, in order and each once, and whether the answer is a list even of one.

    A pattern (``*``, ``?``, ``[``) that matches nothing is NotFound; so that a script sees its typing
    error, while ``--all`` of no VM is an empty success.
    """
    from kvmctl.operations.selection import matching

    if all_ and names:
        raise UsageProblem("give names or --all, not both")
    if not all_ and not names:
        raise UsageProblem("no VM was named", "give names, patterns like 'web-*', or --all")
    several = all_ or len(names) > 1 or any(_is_pattern(name) for name in names)
    return matching(hypervisor, ["*"] if all_ else list(names), must_match=not all_), several


def _is_pattern(name: str) -> bool:
    return any(c in name for c in "*?[")


def for_each(
    app: App,
    names: Sequence[str],
    several: bool,
    act: Callable[[str], dict[str, Any]],
    sentence: Callable[[dict[str, Any]], str],
    parallel: int = 1,
) -> None:
    """Run ``act`` on each name and show what came of it.

    ``act`` returns the target's object; ``sentence`` reads it for people. One failure does not stop the
    others. A single target's error is raised as it is; of several, each is shown as it happens and
    then Partial is raised, or an error like theirs where all failed in the same way.
    """
    if not several and len(names) == 1:
        row = act(names[0])
        output.show_one(app, row, lambda: sentence(row))
        return

    def attempt(name: str) -> dict[str, Any] | KvmctlError:
        try:
            return act(name)
        except Interrupted:
            raise
        except KvmctlError as error:
            return error

    rows: list[dict[str, Any]] = []
    failures: list[KvmctlError] = []
    with ThreadPoolExecutor(max_workers=max(1, min(parallel, len(names) or 1))) as pool:
        results = pool.map(attempt, names) if parallel > 1 else map(attempt, names)
        for name, result in zip(names, results, strict=True):
            if isinstance(result, KvmctlError):
                failures.append(result)
                rows.append({"name": name, "error": result.as_dict()})
                output.show_error(app, result, target=name)
            else:
                rows.append(result)
                if not app.machine_readable:
                    output.show_text(sentence(result))
    if app.output in ("json", "yaml"):
        output.show_list(app, rows, [])
    elif app.output == "name":
        output.show_list(app, [row for row in rows if "error" not in row], [])
    if failures:
        if len(failures) == len(names) and len({failure.exit_code for failure in failures}) == 1:
            raise _AllFailed(failures[0])
        raise Partial("some targets failed")


class _AllFailed(Partial):
    """Every target failed alike: the exit code is theirs, and each was shown already."""

    def __init__(self, like: KvmctlError) -> None:
        super().__init__(like.message)
        self.exit_code = like.exit_code
