"""``resfit cache``: what resfit keeps on this machine, listed, verified and pruned."""

from __future__ import annotations

import datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from resfit.cli import console
from resfit.cli.options import Json

if TYPE_CHECKING:
    from collections.abc import Iterable

    from resfit.storage.cache import CacheEntry

_DAYS = {"": 1.0, "m": 1 / 1440, "h": 1 / 24, "d": 1.0, "w": 7.0}
_BYTES = {"": 1.0, "B": 1.0, "kB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}

Kinds = Annotated[
    list[str] | None,
    typer.Option(
        "--kind",
        help="weights, features, engines, pixels, runs, latency, speed, digests; hub and keras, which other libraries "
        "use too. Repeatable.",
    ),
]


def register(app: typer.Typer) -> None:
    """Adds the commands to the application.

    Args:
        app: The application.
    """
    group = typer.Typer(
        help="List, verify or prune what is kept on this machine: downloads, features, converted networks.",
        epilog="Example: resfit cache prune --older-than 30d",
        no_args_is_help=True,
        rich_markup_mode=None,
    )
    group.command("list", epilog="Example: resfit cache list --kind features")(list_items)
    group.command("verify", epilog="Example: resfit cache verify --kind weights")(verify)
    group.command("prune", epilog="Example: resfit cache prune --max-size 10GB --dry-run")(prune)
    app.add_typer(group, name="cache")


def list_items(kind: Kinds = None, as_json: Json = False) -> None:
    """List what is kept, the least recently used first."""
    from resfit import cache_kinds as cache

    found = cache.find(kinds=kind or ())
    if as_json:
        console.print_json([item.to_dict() for item in found])
        return
    if found:
        _print(found)
    console.message(f"{_counted(found)} in {_root()}.")


def verify(kind: Kinds = None, as_json: Json = False) -> None:
    """Read everything through and compare sizes, hashes and checksums. Exits with 1 if something is damaged."""
    from resfit import cache_kinds as cache

    found = cache.find(kinds=kind or ())
    wrong = [(item, faults) for item in found if (faults := cache.faults(item))]
    if as_json:
        damaged = [{**item.to_dict(), "faults": faults} for item, faults in wrong]
        console.print_json({"verified": len(found), "damaged": damaged})
    else:
        for item, faults in wrong:
            typer.echo(f"{item.kind} {console.printable(item.what)}: {console.printable('; '.join(faults))}")
            typer.echo(f"  {console.printable(item.path)}")
    console.message(f"{len(wrong)} of {len(found)} damaged.")
    if wrong:
        console.message("Delete them: resfit cache prune --damaged. What is needed is brought or made again.")
        raise typer.Exit(1)


def prune(
    older_than: Annotated[
        str | None, typer.Option(help="Time without use after which something goes, such as 30d, 12h or 2w.")
    ] = None,
    max_size: Annotated[
        str | None, typer.Option(help="What may stay, such as 10GB; what was used longest ago goes first.")
    ] = None,
    kind: Kinds = None,
    everything: Annotated[bool, typer.Option("--all", help="All that no other library uses too.")] = False,
    damaged: Annotated[bool, typer.Option("--damaged", help="What `resfit cache verify` names.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would go, and delete nothing.")] = False,
    as_json: Json = False,
) -> None:
    """Delete what can be brought or made again. What a process uses stays."""
    from resfit import cache_kinds as cache

    if not (older_than or max_size or kind or everything or damaged):
        raise typer.BadParameter(
            "say what goes: --older-than, --max-size, --kind, --damaged or --all.", param_hint="resfit cache prune"
        )
    days = console.quantity(older_than, _DAYS, "--older-than", "30d") if older_than else None
    result = cache.prune(
        kinds=kind or (),
        older_than=days,
        max_bytes=console.quantity(max_size, _BYTES, "--max-size", "10GB") if max_size else None,
        damaged=damaged,
        dry_run=dry_run,
    )
    if as_json:
        kept: list[dict[str, Any]] = [{**item.to_dict(), "reason": reason} for item, reason in result.kept]
        console.print_json({"deleted": [item.to_dict() for item in result.deleted], "kept": kept, "dry_run": dry_run})
        return
    if result.deleted:
        _print(result.deleted)
    for item, reason in result.kept:
        console.message(f"Kept {item.kind} {console.printable(item.what)}: {console.printable(reason)}.")
    console.message(
        f"{_counted(result.deleted)} {'would be' if dry_run else ''} deleted from {_root()}.".replace("  ", " ")
    )


def _print(items: Iterable[CacheEntry]) -> None:
    rows = []
    for item in items:
        day = datetime.datetime.fromtimestamp(item.used).strftime("%Y-%m-%d %H:%M") if item.used else ""
        rows.append((item.kind, item.what, item.state, console.size(item.bytes), day, item.source, item.path.name))
    columns = ("kind", "what", "state", ">size", "last used", "from", "name")
    console.print_table("", columns, rows)


def _counted(items: Iterable[CacheEntry]) -> str:
    listed = list(items)
    things = f"{len(listed)} thing{'' if len(listed) == 1 else 's'}"
    return f"{things}, {console.size(sum(item.bytes for item in listed))},"


def _root() -> str:
    from resfit.storage.locks import cache_root

    return console.printable(cache_root())
