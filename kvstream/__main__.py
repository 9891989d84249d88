"""The command `kvstream`: looks after the records of sweeps. Sweeps are files of their own, see the README."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from kvstream.grid.flags import Parser
from kvstream.grid.terminal import leave, refuse
from kvstream.records.store import Records


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command; exit code 0 if all is well, 1 if something differs, 2 for invalid input."""
    parser = Parser(prog="kvstream", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True, parser_class=Parser)
    verify = commands.add_parser("verify", help="hash and count the records of a sweep again")
    rerun = commands.add_parser("rerun", help="compute one quality cell again and compare its rows")
    for command in (verify, rerun):
        command.add_argument("folder", metavar="DIR", help="what the sweep was given as --out")
    rerun.add_argument("cell", metavar="CELL", help="16 hex digits, the name of the cell's files")
    given = parser.parse_args(arguments)
    try:
        good = (
            _verify(Records(given.folder)) if given.command == "verify" else _rerun(Records(given.folder), given.cell)
        )
    except (ValueError, OSError) as error:
        refuse(error)
    except KeyboardInterrupt:
        leave(130)
    leave(0 if good else 1)


def _verify(records: Records) -> bool:
    from kvstream.records.verify import verify

    verdict = verify(records)
    for problem in verdict.problems:
        print(problem)
    counted = f"{verdict.cells:,} cells with {verdict.rows:,} rows are what was committed"
    print(f"{records.storage.where}: {counted}, {len(verdict.problems):,} problems")
    return not verdict.problems


def _rerun(records: Records, cell: str) -> bool:
    from kvstream.sweep.rerun import rerun

    again = rerun(records, cell)
    same = (
        "identical"
        if not again.worst_nats and not again.other_hits
        else f"at most {again.worst_nats:.1e} nats apart, {again.mean_nats:.1e} on average, where rounding alone makes "
        f"{again.rounding_nats:.1e}"
    )
    code = "" if again.same_code else "; code, model or text have changed since"
    print(f"{again.cell}: {again.rows:,} rows, {same}, {again.other_hits:,} argmax hits differ{code}")
    return again.agrees


if __name__ == "__main__":
    main()
