"""opsctl exporter: run the sidecar."""

from __future__ import annotations

import os

import click

from vllm_opsctl.cli.common import load, require_targets, resolve_targets
from vllm_opsctl.exporter.config import Config
from vllm_opsctl.exporter.config_load import LoadedConfig, threshold_warnings


@click.group()
def exporter() -> None:
    """Run the sidecar exporter."""


@exporter.command()
@click.argument("targets", nargs=-1, metavar="[TARGET]...")
@click.option("--listen", metavar="HOST:PORT", help="Overrides exporter.listen [127.0.0.1:9836].")
@click.pass_context
def run(ctx: click.Context, targets: tuple[str, ...], listen: str | None) -> None:
    """
    Poll vLLM servers and expose their metrics until SIGTERM.

    TARGET is a name of the configuration or a URL; all configured ones when none is named.
    """
    from vllm_opsctl.exporter.sidecar import Sidecar

    loaded = load(ctx)
    settings = loaded.config
    if targets:
        chosen = tuple(resolve_targets(targets, loaded))
        settings = settings.model_copy(update={"targets": chosen})
    if listen is not None:
        settings = _with_listen(settings, listen)
    require_targets(LoadedConfig(settings, loaded.path))
    for warning in threshold_warnings(settings):
        click.echo(f"Warning: {warning}", err=True)
    sidecar = Sidecar(settings, os.environ)
    many = len(settings.targets)
    click.echo(
        f"{sidecar.url}/metrics, {many} target{'' if many == 1 else 's'}; stops on SIGTERM",
        err=True,
    )
    sidecar.run()


def _with_listen(settings: Config, listen: str) -> Config:
    from vllm_opsctl.exporter.config import split_listen

    try:
        split_listen(listen)
    except ValueError as problem:
        raise click.BadParameter(str(problem), param_hint="--listen") from None
    return settings.model_copy(
        update={"exporter": settings.exporter.model_copy(update={"listen": listen})}
    )
