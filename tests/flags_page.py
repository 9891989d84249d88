"""docs/flags.md, made from the parser itself.

python tests/flags_page.py      writes it
"""

import argparse
import re
import runpy
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))

from kvstream.grid.flags import parser_of  # noqa: E402
from kvstream.policies import POLICIES  # noqa: E402

PAGE = ROOT / "docs" / "flags.md"
HEAD = """# Flags of a sweep

Every sweep takes them: `.venv/bin/python sweeps/quick.py --budgets 128,512`. Each replaces one axis of the sweep's
grid, and the others stay as they are; the policies are then the product of all axes. Where policies change, latency
cells time all of them; `--contexts none` leaves latency out. Lists are written with commas. What a sweep has now, its
`--dry-run` lists; this page shows `sweeps/full.py`. Written by `python tests/flags_page.py`.
"""


def page() -> str:
    """The page as it should be."""
    sweep = runpy.run_path(str(ROOT / "sweeps" / "full.py"))
    parser = parser_of(sweep["GRID"], "")
    parts = [HEAD]
    for group in parser._action_groups:
        actions = [action for action in group._group_actions if not isinstance(action, argparse._HelpAction)]
        if actions:
            parts.append(f"\n## {group.title.capitalize()}\n\n| Flag | What it says |\n|---|---|\n")
            parts += [f"| `{spelled(action)}` | {without_names(action)} |\n" for action in actions]
    return "".join(parts)


def without_names(action: argparse.Action) -> str:
    """The help of a flag without the names of policies, so that a new policy leaves this page as it is."""
    names = "|".join(POLICIES)
    return re.sub(rf" \(({names})(, ({names}))*\)", "", action.help or "")


def spelled(action: argparse.Action) -> str:
    """A flag and its values as one types them."""
    names = ", ".join(action.option_strings)
    choices = "\\|".join(map(str, action.choices)) if action.choices else action.metavar
    return names if action.nargs == 0 else f"{names} {choices}"


if __name__ == "__main__":
    PAGE.write_text(page())
