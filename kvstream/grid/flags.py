"""The flags that every sweep shares. Each replaces one axis of the sweep's grid; the other axes stay as they are.

Where the policies change, latency cells compare all of them. The axes of policies are those that their fields declare:
see `kvstream.policies.fields`.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NoReturn, TypeVar

from kvstream.grid.axes import BOS, METRICS, MOST, Grid, expand
from kvstream.grid.cells import DTYPE_BYTES
from kvstream.grid.terminal import refuse
from kvstream.policies import POLICIES, SCORERS, BoundedPolicy, Policy, parse_policy
from kvstream.policies.fields import Field, axes_of

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
    given = parser_of(grid, question).parse_args(arguments)
    try:
        changes: dict[str, Any] = {"policies": _policies(grid, given)}
        replaced = ("models", "text", "join_rows", "bos", "documents", "lengths", "contexts", "batches")
        for axis in (*replaced, "recompute", "recompute_every", "metrics", "attention_loss"):
            if (value := getattr(given, axis)) is not None:
                changes[axis] = value
        if changes["policies"] != grid.policies:
            changes["latency_policies"] = None
        repeats = {name: value for name in (*REPEATS, "compiled") if (value := getattr(given, name)) is not None}
        changes["repeats"] = replace(grid.repeats, **repeats)
        grid = replace(grid, **changes)
    except ValueError as error:
        refuse(error)
    out = f"records/{grid.name}" if given.out is None else given.out
    return grid, Options(out, given.device, given.dtype, given.threads, given.dry_run)


def parser_of(grid: Grid, question: str) -> argparse.ArgumentParser:
    """The parser of a sweep's command line; `question` stands above its help."""
    parser = Parser(
        description=question,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        epilog="An axis flag replaces that axis; the policies are then the product of all axes.\n"
        "Where policies change, latency cells time all of them; --contexts none leaves latency out.",
    )
    _add_axes(parser.add_argument_group("axes (comma lists)"), grid)
    text = parser.add_argument_group("text")
    sources = "kjv, kjv:whole, pg19, recall:, recall:strings, hub:owner/name@revision, a file, folder or glob"
    column = ":column behind the last four if the texts' is not called text"
    text.add_argument("--text", metavar="NAME", help=f"{sources}; {column}; now {grid.text}")
    text.add_argument("--documents", type=_number, metavar="N", help=f"how many of it; now {grid.documents}")
    text.add_argument(
        "--join-rows",
        action=argparse.BooleanOptionalAction,
        help="take all rows of a .jsonl or .parquet file, or of a dataset's split, as one document",
    )
    text.add_argument(
        "--bos", choices=BOS, help=f"begin documents with a BOS token; auto: if the tokenizer does; now {grid.bos}"
    )
    _add_how(parser.add_argument_group("how to run"), grid)
    return parser


def _add_axes(group: Any, grid: Grid) -> None:
    numbers = _listed("whole numbers, such as 4,8", int)
    group.add_argument("--models", type=_WORDS, metavar="A,B", help=f"now {','.join(grid.models)}")
    names = ", ".join(POLICIES)
    group.add_argument("--policies", type=_policies_in, metavar="A,B", help=f"names ({names}) or whole labels")
    scorers = f"in their place, beside full: keep sinks and recents and choose the rest by {', '.join(SCORERS)}"
    group.add_argument("--scorers", type=_scorers_in, metavar="A,B", help=scorers)
    group.add_argument("--budgets", type=numbers, metavar="N,N", help="cached tokens per layer and head")
    readers: dict[type, tuple[Callable[[str], tuple[Any, ...]], str]] = {
        int: (numbers, "N,N"),
        float: (_listed("numbers, such as 0.5,0.7", float), "X,X"),
        str: (_WORDS, "A,B"),
        tuple: (lambda text: (_none_or(numbers)(text),), "N,N"),  # a value of such an axis is a list itself
    }
    for name, (field, owners) in policy_axes().items():
        read, metavar = readers[field.kind]
        if field.axis and field.axis.of_budget:
            read = _listed("tokens or shares of the budget, such as 64,0.5", _tokens_or_share)
        shared = len(owners) == sum(bool(axes_of(each)) for each in POLICIES.values())
        choices = f": {', '.join(field.choices)}" if field.choices else ""
        assert field.axis
        words = field.axis.words + ("" if shared else f" ({', '.join(owners)})") + choices
        group.add_argument(_flag(name), type=read, metavar=metavar, help=words)
    lengths = "tokens per document: the longest is run, the others are its prefixes; none: no quality cells"
    group.add_argument("--lengths", type=_none_or(numbers), metavar="N,N", help=lengths)
    windows = "beside the policies, windows of so many tokens run anew for a sample of tokens: slow; none: none"
    group.add_argument("--recompute", type=_none_or(numbers), metavar="N,N", help=windows)
    sample = f"of how many tokens one is told so; now {grid.recompute_every}"
    group.add_argument("--recompute-every", type=_number, metavar="N", help=sample)
    metrics = f"kl: also compare each token with full's prediction; nll: do not; now {grid.metrics}"
    group.add_argument("--metrics", choices=METRICS, help=metrics)
    attention = "also measure full's attention on what each policy has evicted: two more replays per text and policy"
    group.add_argument("--attention-loss", action=argparse.BooleanOptionalAction, help=attention)
    contexts = "prompt lengths of latency cells; none: no such cells"
    group.add_argument("--contexts", type=_none_or(numbers), metavar="N,N", help=contexts)
    group.add_argument("--batches", type=numbers, metavar="N,N", help="texts at once in latency cells")


def _add_how(group: Any, grid: Grid) -> None:
    for name, what in REPEATS.items():
        now = getattr(grid.repeats, name)
        group.add_argument(f"--{name}", type=_number, metavar="N", help=f"{what} in latency cells; now {now}")
    fused = "latency on NVIDIA GPUs: have torch.compile fuse the steps, if full gains by it; takes long for each policy"
    group.add_argument("--compiled", action=argparse.BooleanOptionalAction, help=fused)
    device = "auto: the cluster's GPUs, else CPUs; Apple's GPUs were not tried: give cpu there"
    group.add_argument("--device", choices=DEVICES, default="auto", help=device)
    group.add_argument(
        "--dtype",
        choices=tuple(DTYPE_BYTES),
        default="float32",
        help="of weights and cache; tf32: float32, multiplied in TF32 by NVIDIA GPUs",
    )
    group.add_argument("--threads", type=_number, metavar="N", help="per cell on a CPU; default: by cores and cells")
    where = f"records folder, default records/{grid.name}; or s3://bucket/prefix, gs://…"
    group.add_argument("--out", metavar="DIR", help=where)
    group.add_argument("--dry-run", action="store_true", help="print the cells and their cost, or why they are refused")


def _number(text: str) -> int:
    """Read a whole number of 1 or more."""
    try:
        number = int(text)
    except ValueError:
        number = 0
    if not 1 <= number <= MOST:
        raise argparse.ArgumentTypeError(f"{text[:100]!r} is not valid; give a whole number from 1 to {MOST:,}")
    return number


def _listed(what: str, convert: Callable[[str], T]) -> Callable[[str], tuple[T, ...]]:
    """Make a reader of comma lists of `what`, without spaces or quotes, as `ray submit` joins arguments unquoted."""

    def parse(text: str) -> tuple[T, ...]:
        try:
            return tuple(convert(entry) for entry in text.split(","))
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text[:100]!r} is not valid; give a comma list of {what}") from None

    return parse


def _tokens_or_share(text: str) -> int | float:
    return int(text) if text.isdecimal() else float(text)


def _word(text: str) -> str:
    if word := text.strip():
        return word
    raise ValueError("no word")


_WORDS = _listed("names, such as a,b", _word)


def _none_or(parse: Callable[[str], tuple[T, ...]]) -> Callable[[str], tuple[T, ...]]:
    """Make a reader that also takes `none`, an empty list."""
    return lambda text: () if text == "none" else parse(text)


def _policies_in(text: str) -> tuple[str | Policy, ...]:
    """Read names and whole labels, split at the commas outside parentheses; a label with values becomes its policy."""
    entries: list[str] = [""]
    depth = 0
    for character in text:
        depth += (character == "(") - (character == ")")
        if character == "," and depth == 0:
            entries.append("")
        else:
            entries[-1] += character
    for name in (entries := [entry.strip() for entry in entries]):
        if "(" not in name and name not in POLICIES:
            raise argparse.ArgumentTypeError(f"{name!r} is unknown; choose among {', '.join(POLICIES)}")
    try:
        return tuple(parse_policy(entry) if "(" in entry else entry for entry in entries)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _scorers_in(text: str) -> tuple[str, ...]:
    """Read names of scorers: the names of the policies that choose by them."""
    for name in text.split(","):
        if name not in SCORERS:
            raise argparse.ArgumentTypeError(f"{name!r} is unknown; choose among {', '.join(SCORERS)}")
    return tuple(SCORERS[name] for name in text.split(","))


def policy_axes() -> dict[str, tuple[Field, list[str]]]:
    """The axes that fields of policies declare: by name, the first such field and the policies that have it."""
    found: dict[str, tuple[Field, list[str]]] = {}
    for policy in POLICIES.values():
        for name, field in axes_of(policy).items():
            found.setdefault(name, (field, []))[1].append(policy.name)
    return found


def _flag(axis: str) -> str:
    return f"--{axis.replace('_', '-')}"


def _policies(grid: Grid, given: argparse.Namespace) -> tuple[Policy, ...]:
    """The grid's own policies, or the product of the axes where any of them was given."""
    asked = {axis: found for axis in policy_axes() if (found := getattr(given, axis)) is not None}
    if given.policies is None and given.budgets is None and given.scorers is None and not asked:
        return grid.policies
    if given.policies and given.scorers:
        raise ValueError("--scorers: --policies names policies already; give one of the two")
    own_names = tuple(policy.name for policy in grid.policies)
    wanted = given.policies or own_names
    if given.scorers:
        wanted = (*(name for name in own_names if not issubclass(POLICIES[name], BoundedPolicy)), *given.scorers)
    names = tuple(dict.fromkeys(entry for entry in wanted if isinstance(entry, str)))
    labelled = tuple(entry for entry in wanted if not isinstance(entry, str))
    given_axes = [_flag(axis) for axis in (*(("budgets",) if given.budgets is not None else ()), *asked)]
    if given_axes and not any(issubclass(POLICIES[name], BoundedPolicy) for name in names):
        raise ValueError(
            f"{given_axes[0]}: full and whole labels leave it nothing to vary; name bounded policies without values"
        )
    own: dict[str, tuple[Any, ...]] = {}  # values that the grid's policies have
    for axis in dict.fromkeys(axis for name in names for axis in axes_of(POLICIES[name])):
        fields = [(policy, axes_of(type(policy)).get(axis)) for policy in grid.policies]
        if held := dict.fromkeys(_on_axis(policy, field) for policy, field in fields if field):
            own[axis] = tuple(held)
    budgets = given.budgets or tuple(dict.fromkeys(p.regions.budget for p in grid.policies if p.regions)) or (256,)
    return (*expand(names, budgets, **(own | asked)), *labelled)


def _on_axis(policy: Policy, field: Field) -> Any:
    """A policy's value on the axis of one of its fields: of tokens the share, as budgets may change."""
    value = getattr(policy, field.name)
    return value / policy.regions.budget if field.axis and field.axis.of_budget and policy.regions else value
