"""kvmctl completion"""

import click
from click.shell_completion import get_completion_class

from kvmctl.cli import output
from kvmctl.cli.options import App, everywhere


@click.command()
@click.argument("shell", type=click.Choice(("bash", "zsh", "fish")))
@everywhere
@click.pass_obj
def completion(app: App, shell: str) -> None:
    """Print the completion script for a shell.

    \b
    Examples:
      kvmctl completion bash > ~/.local/share/bash-completion/completions/kvmctl
      kvmctl completion zsh > ~/.zfunc/_kvmctl
      kvmctl completion fish > ~/.config/fish/completions/kvmctl.fish
    """
    kind = get_completion_class(shell)
    assert kind is not None
    root = click.get_current_context().find_root().command
    complete = kind(root, {}, "kvmctl", "_KVMCTL_COMPLETE")
    # Not complete.source(): that runs bash to ask for its version, which need not be the one to come.
    output.show_text(complete.source_template % complete.source_vars())
