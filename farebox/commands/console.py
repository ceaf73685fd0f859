"""`farebox console`: the way in for whoever runs the gateway."""

from __future__ import annotations

from pathlib import Path

import click

from farebox.commands.common import Refused, common_options, database, load, now, say, show


@click.group()
def console() -> None:
    """The web console."""


@console.command(short_help="A link that signs in the operator, once.")
@common_options
def link(config_path: Path | None, as_json: bool) -> None:
    """Print a link that signs in as the operator: once, within ten minutes, on this machine."""
    from console.links import LINK_LASTS, LinkUnavailable, local_url, sign_in_link
    from farebox.embedded import is_up
    from proxy.settings import parse_address

    config = load(config_path)
    # A gateway keeps its embedded database running: where none runs this is the wrong folder, and a
    # link from a new database would lead nowhere.
    if not config.database.url and not is_up(config.data_dir):
        raise Refused(
            f"No gateway runs in {config.root.absolute()}: run this in the folder of the one that"
            " does, or name its configuration with --config."
        )
    host, port = parse_address(config.server.listen)
    base_url = local_url(config.server.public_url, host, port)
    if base_url.endswith(":0"):
        raise Refused(
            "The system chooses the port of server.listen, so nobody knows where the console is:"
            " name one."
        )
    made_at = now()
    try:
        with database(config) as conninfo:
            url = sign_in_link(conninfo, base_url, made_at)
    except LinkUnavailable as error:
        raise Refused(str(error)) from None
    if as_json:
        show({"link": url, "expires_at": made_at + LINK_LASTS}, as_json=True)
        return
    click.echo(url)
    say("It works once, within ten minutes, and in a browser on this machine only.")
