"""The flags that every sweep shares. Each replaces one axis of the sweep's grid; the other axes stay as they are.

Values are comma lists without spaces or quotes, because `ray submit` joins arguments unquoted.
"""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NoReturn, TypeVar, get_args

from kvstream.grid.axes import BOS, MOST, Grid, expand
from kvstream.grid.cells import DTYPE_BYTES
from kvstream.grid.exits import refuse
from kvstream.policies import POLICIES, Axes, BoundedPolicy, Policy, parse_policy
from kvstream.policies.base import Position
from kvstream.policies.fix_size_l2 import Strategy

T = TypeVar("T")
REPEATS = {"prefills": "prefills per policy", "rounds": "rounds", "steps": "output tokens per round"}
DEVICES = ("auto", "cpu", "cuda", "mps")


@dataclass(frozen=True)
class Options:
    """How to run a grid: where it computes and where records go. None of this changes what is asked."""

    out: str
    device: str
    dtype: str
    threads: int | None
    dry_run: bool


class Parser(argparse.ArgumentParser):
    """One line per error, exit code 2."""

    def error(self, message: str) -> NoReturn:
        """Say what is wrong, and where argparse's own words name no remedy, where to look for it."""
        refuse(message if "; " in message else f"{message}; --help lists what there is")


def parse_flags(grid: Grid, question: str, arguments: Sequence[str] | None = None) -> tuple[Grid, Options]:
    """Read the command line: the grid it asks for, and how to run it. What is invalid ends the program, exit code 2."""
    given = _parser(grid, question).parse_args(arguments)
    try:
        changes: dict[str, Any] = {"policies": _policies(grid, given)}
        for axis in ("models", "text", "join_rows", "bos", "documents", "lengths", "contexts", "batches"):
            if (value := getattr(given, axis)) is not None:
                changes[axis] = value
        if changes["policies"] != grid.policies:
            changes["latency_policies"] = None
        repeats = {name: value for name in REPEATS if (value := getattr(given, name)) is not None}
        changes["repeats"] = replace(grid.repeats, **repeats)
        grid = replace(grid, **changes)
    except ValueError as error:
        refuse(error)
    out = f"records/{grid.name}" if given.out is None else given.out
    return grid, Options(out, given.device, given.dtype, given.threads, given.dry_run)


def _parser(grid: Grid, question: str) -> argparse.ArgumentParser:
    parser = Parser(
        description=question,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        epilog="An axis flag replaces that axis; the policies are then the product of all axes.",
    )
    words, numbers = _listed("names, such as a,b", str), _listed("whole numbers, such as 4,8", _count)
    axes = parser.add_argument_group("axes (comma lists)")
    axes.add_argument("--models", type=words, metavar="A,B", help=f"now {','.join(grid.models)}")
    axes.add_argument(
        "--policies", type=_policy_list, metavar="A,B", help=f"names ({', '.join(POLICIES)}) or whole labels"
    )
    axes.add_argument("--budgets", type=numbers, metavar="N,N", help="cached tokens per layer and head")
    axes.add_argument("--start-sizes", type=numbers, metavar="N,N", help="attention sinks of streaming_llm")
    axes.add_argument(
        "--strategies", type=words, metavar="A,B", help=f"of fix_size_l2: {', '.join(get_args(Strategy))}"
    )
    ratios = _listed("numbers, such as 0.5,0.7", _decimal)
    axes.add_argument("--keep-ratios", type=ratios, metavar="X,X", help="of fix_size_l2")
    axes.add_argument("--positions", type=words, metavar="A,B", help=", ".join(get_args(Position)))
    axes.add_argument("--skip-layers", type=numbers, metavar="N,N", help="layers that never evict")
    axes.add_argument(
        "--lengths",
        type=_none_or(numbers),
        metavar="N,N",
        help="tokens per document: the longest is run, the others are its prefixes; none: no quality cells",
    )
    axes.add_argument(
        "--contexts", type=_none_or(numbers), metavar="N,N", help="prompt lengths of latency cells; none: no such cells"
    )
    axes.add_argument("--batches", type=numbers, metavar="N,N", help="texts at once in latency cells")
    parser.add_argument("--text", metavar="NAME", help=f"kjv, pg19, a file, folder or glob; now {grid.text}")
    parser.add_argument(
        "--join-rows",
        action=argparse.BooleanOptionalAction,
        help="take all rows of a .jsonl or .parquet file, or of a dataset's split, as one document",
    )
    parser.add_argument(
        "--bos", choices=BOS, help=f"begin documents with a BOS token; auto: if the tokenizer does; now {grid.bos}"
    )
    parser.add_argument("--documents", type=_count, metavar="N", help=f"documents of the text; now {grid.documents}")
    run = parser.add_argument_group("how to run")
    for name, what in REPEATS.items():
        now = getattr(grid.repeats, name)
        run.add_argument(f"--{name}", type=_positive, metavar="N", help=f"{what} in latency cells; now {now}")
    run.add_argument("--device", choices=DEVICES, default="auto", help="auto: the cluster's GPUs, else CPUs")
    run.add_argument("--dtype", choices=tuple(DTYPE_BYTES), default="float32")
    run.add_argument("--threads", type=_positive, metavar="N", help="per cell on a CPU; default: by cores and cells")
    run.add_argument(
        "--out",
        type=_place,
        metavar="DIR",
        help=f"records folder, default records/{grid.name}; or s3://bucket/prefix, gs://…",
    )
    run.add_argument("--dry-run", action="store_true", help="print the cells and what they would cost")
    return parser


def _policies(grid: Grid, given: argparse.Namespace) -> tuple[Policy, ...]:
    """The grid's own policies, or the product of the axes where any of them was given."""
    flags = ("policies", "budgets", "start_sizes", "strategies", "keep_ratios", "positions", "skip_layers")
    if all(getattr(given, flag) is None for flag in flags):
        return grid.policies
    wanted = given.policies or tuple(policy.name for policy in grid.policies)
    names = [entry for entry in wanted if isinstance(entry, str)]
    given_axes = [f"--{flag.replace('_', '-')}" for flag in flags[1:] if getattr(given, flag) is not None]
    if given_axes and not names:
        raise ValueError(
            f"{given_axes[0]}: whole labels leave it nothing to vary; name policies without values instead"
        )
    labelled = tuple(entry for entry in wanted if not isinstance(entry, str))
    bounded = [policy for policy in grid.policies if isinstance(policy, BoundedPolicy)]

    def axis(flag: str, field: str, default: tuple[T, ...]) -> tuple[T, ...]:
        own = dict.fromkeys(getattr(policy, field) for policy in bounded if hasattr(policy, field))
        return getattr(given, flag) or tuple(own) or default

    defaults = Axes()
    axes = Axes(
        start_sizes=axis("start_sizes", "start_size", defaults.start_sizes),
        strategies=axis("strategies", "strategy", defaults.strategies),
        keep_ratios=axis("keep_ratios", "keep_ratio", defaults.keep_ratios),
        positions=axis("positions", "position", defaults.positions),
        skip_layers=given.skip_layers or next((policy.skip_layers for policy in bounded), ()),
    )
    budgets = given.budgets or tuple(dict.fromkeys(p.regions.budget for p in bounded if p.regions)) or (256,)
    return (*expand(tuple(dict.fromkeys(names)), budgets, axes), *labelled)


def _policy_list(text: str) -> tuple[str | Policy, ...]:
    """Split at the commas outside parentheses; a label with values becomes its policy."""
    entries: list[str] = [""]
    depth = 0
    for character in text:
        depth += (character == "(") - (character == ")")
        if character == "," and depth == 0:
            entries.append("")
        else:
            entries[-1] += character
    try:
        return tuple(parse_policy(entry) if "(" in entry else _known(entry) for entry in entries)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _known(name: str) -> str:
    if name not in POLICIES:
        raise ValueError(f"{name!r} is unknown; choose among {', '.join(POLICIES)}")
    return name


def _listed(what: str, convert: Callable[[str], T]) -> Callable[[str], tuple[T, ...]]:
    def parse(text: str) -> tuple[T, ...]:
        entries = text.split(",")
        if not all(entries):
            raise argparse.ArgumentTypeError(f"{_short(text)} is not valid; give a comma list of {what}")
        return tuple(convert(entry) for entry in entries)

    return parse


def _none_or(parse: Callable[[str], tuple[T, ...]]) -> Callable[[str], tuple[T, ...]]:
    return lambda text: () if text == "none" else parse(text)


def _count(text: str) -> int:
    if not (text.isascii() and text.isdecimal()):
        raise argparse.ArgumentTypeError(f"{_short(text)} is not a whole number; write it in digits, such as 8")
    if len(text) > 4000 or int(text) > MOST:  # Python itself reads no more than 4,300 digits
        raise argparse.ArgumentTypeError(f"{_short(text)} is too large; give {MOST:,} or less")
    return int(text)


def _positive(text: str) -> int:
    if (number := _count(text)) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not valid; give 1 or more")
    return number


def _decimal(text: str) -> float:
    if not re.fullmatch(r"-?[0-9]*\.?[0-9]+(e-?[0-9]+)?|-?inf|nan", text):
        raise argparse.ArgumentTypeError(f"{_short(text)} is not a number; write it in digits, such as 0.7")
    return float(text)


def _place(text: str) -> str:
    """Refuse what no folder can be, before anything is computed for it."""
    if not text.isprintable():
        raise argparse.ArgumentTypeError(f"{_short(text)} holds characters that cannot be shown; give another name")
    above = text
    while above and "://" not in text and not os.path.lexists(above):
        above = os.path.dirname(above)
    if os.path.lexists(above) and not os.path.isdir(above):
        raise argparse.ArgumentTypeError(f"{_short(text)} cannot be a folder, {above!r} is a file; give another name")
    return text


def _short(text: str) -> str:
    return repr(text if len(text) <= 100 else text[:99] + "…")
