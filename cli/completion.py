"""opsctl completion: the scripts that click generates."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

_HOW = {
    "bash": 'eval "$(opsctl completion bash)"        # in ~/.bashrc',
    "zsh": 'eval "$(opsctl completion zsh)"         # in ~/.zshrc',
    "fish": "opsctl completion fish | source          # in ~/.config/fish/config.fish",
}


@click.command(epilog="\b\n" + "\n".join(_HOW.values()))
@click.argument("shell", type=click.Choice(list(_HOW)))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print the completion script of a shell."""
    kind = get_completion_class(shell)
    assert kind is not None
    script = kind(ctx.find_root().command, {}, "opsctl", "_OPSCTL_COMPLETE")
    template_values = script.source_vars()
    click.echo(script.source_template % template_values)
