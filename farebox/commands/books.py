"""`farebox ledger` and `farebox usage`: whether the books are right, and what is in them."""

from __future__ import annotations

import csv
import datetime as dt
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from farebox.commands.common import (
    SINCE,
    Record,
    Refused,
    common_options,
    database,
    directory,
    load,
    load_begun,
    say,
    show,
    show_all,
)

if TYPE_CHECKING:
    from ledger.reaper import Reclaimed
    from ledger.segments import JournalReport
    from ledger.usage import UsageRecord


@click.group()
def ledger() -> None:
    """The books: verify them, and see who holds leased credit."""


@ledger.command("verify", short_help="Check every invariant of the books.")
@common_options
def verify(config_path: Path | None, as_json: bool) -> None:
    """Check every invariant of the books; exit code 1 if one does not hold."""
    config = load_begun(config_path)
    from ledger.verify import run

    with database(config) as conninfo:
        results = run(conninfo)
    records = [
        {
            "check": result.name,
            "claim": result.claim,
            "examined": f"{result.examined} {result.unit}",
            "violations": len(result.violations),
        }
        for result in results
    ]
    show_all(records, as_json=as_json, empty="There is nothing to check.")
    violations = [violation for result in results for violation in result.violations]
    for violation in violations:
        say(f"{violation.check}: {violation.subject}: {violation.detail}")
    if violations:
        raise Refused("The books do not agree; the lines above say where.")


@ledger.command("holders")
@common_options
def holders(config_path: Path | None, as_json: bool) -> None:
    """Who holds leased credit now."""
    config = load_begun(config_path)
    from ledger.money import format_usd
    from ledger.verify import holders as find

    with database(config) as conninfo:
        found = find(conninfo)
    records: list[Record] = [
        {
            "holder": holder.holder_id,
            "node": holder.node,
            "state": holder.state,
            "epoch": holder.epoch,
            "applied_seq": holder.applied_seq,
            "opened_at": holder.opened_at,
            "seen_at": holder.seen_at,
            "leases": holder.leases,
            "outstanding_usd": format_usd(holder.outstanding),
        }
        for holder in found
    ]
    show_all(records, as_json=as_json, empty="No gateway has held credit yet.")


@ledger.command("declare-dead", short_help="Give back what a machine held that is gone for good.")
@click.argument("node")
@click.option("--yes", is_flag=True, help="The machine is off, and stays off.")
@common_options
def declare_dead(node: str, yes: bool, config_path: Path | None, as_json: bool) -> None:
    """Give back at once what the gateway on NODE held, because its machine is gone for good.

    Without this it comes back by itself, some twenty minutes after the node fell silent.
    """
    config = load_begun(config_path)
    if not yes:
        raise Refused(_DANGER.format(node=node))
    import trio

    from ledger.money import format_usd
    from ledger.store import StoreError

    with database(config) as conninfo:
        try:
            reclaimed = trio.run(_declare_dead, conninfo, node)
        except StoreError as error:
            raise Refused(f"The database did not do it: {error}.") from None
    records: list[Record] = [
        {
            "holder": holder.holder_id,
            "node": holder.node,
            "returned_usd": format_usd(holder.amount),
        }
        for holder in reclaimed
    ]
    show_all(records, as_json=as_json, empty=f"{node} came back meanwhile; it was left alone.")


_DANGER = (
    "Is the machine of {node!r} off? A gateway that still runs, only cut off from the database,"
    " goes on spending what it holds; what is given back now would be spent twice, and you would"
    " pay for it. If it is off, say so with --yes."
)


async def _declare_dead(conninfo: str, node: str) -> list[Reclaimed]:
    from ledger.postgres import PostgresStore
    from ledger.reaper import NotDead, declare_dead

    store = PostgresStore(conninfo)
    say(f"Listening whether {node} is alive …")
    try:
        return await declare_dead(store, node)
    except NotDead as error:
        raise Refused(str(error)) from None
    finally:
        await store.aclose()


@ledger.group()
def journal() -> None:
    """The journal on disk, from which a gateway recovers."""


@journal.command("verify")
@click.option(
    "--cut",
    is_flag=True,
    help="Cut a corrupt journal at its first bad record. What follows it is lost: keep a copy.",
)
@common_options
def journal_verify(cut: bool, config_path: Path | None, as_json: bool) -> None:
    """Read every record; exit code 1 if the journal is corrupt.

    A torn end is not corruption: a crash may leave the last record unfinished; recovery ends there
    and loses nothing that was answered. Bytes that are bad in the middle are corruption, which
    nothing repairs by itself.
    """
    config = load(config_path)
    from ledger import segments

    path = config.data_dir / "ledger"
    try:
        report = segments.truncate_corrupt(path) if cut else segments.verify(path)
    except segments.JournalError as error:
        raise Refused(f"{error}.") from None
    show(_journal_record(report), as_json=as_json)
    if not report.ok:
        raise Refused(
            "The journal is corrupt. Restore it from its disk's backup, or accept the loss of what "
            "follows the bad record with --cut."
        )


def _journal_record(report: JournalReport) -> Record:
    return {
        "journal_id": report.journal_id.hex() if report.journal_id else None,
        "segments": [f"{segment.path.name} {segment.state}" for segment in report.segments],
        "records": sum(segment.records for segment in report.segments),
        "missing_events": [f"{last}–{first}" for last, first in report.gaps],
        "posted_up_to": report.acked_seq,
        "events_to_post": report.unacknowledged_events,
        "open_reservations": report.open_reservations,
    }


@click.group()
def usage() -> None:
    """What was used and charged."""


@usage.command("export", short_help="One record for each request of an account.")
@click.argument("account")
@click.option("--since", type=SINCE, help="2026-11-21, or 7d: posted since then.")
@click.option("--format", "shape", type=click.Choice(["csv", "jsonl"]), default="csv")
@common_options
def export(
    account: str,
    since: dt.datetime | None,
    shape: Literal["csv", "jsonl"],
    config_path: Path | None,
    as_json: bool,
) -> None:
    """One record for each request of ACCOUNT, oldest first; amounts are exact."""
    config = load_begun(config_path)
    from adapters.registry import ENDPOINTS
    from ledger.usage import export as find

    with directory(config) as books:
        account_id = books.show_account(account).account.account_id
    with database(config) as conninfo:
        records = find(conninfo, account_id, ENDPOINTS, since=since)
        _write(records, "jsonl" if as_json else shape)


def _write(records: Iterable[UsageRecord], shape: Literal["csv", "jsonl"]) -> None:
    import msgspec

    from ledger.usage import UsageRecord

    if shape == "jsonl":
        encoder = msgspec.json.Encoder()
        for record in records:
            click.echo(encoder.encode(record))
        return
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(UsageRecord.__struct_fields__)
    for record in records:
        fields: Mapping[str, object] = msgspec.structs.asdict(record)
        writer.writerow(fields.values())
