# ruff: noqa: I001  # this order is the one of lists and --help
"""The policies, one file each. To add one: write its file, and import its class here. docs/adding-a-policy.md shows it.

Everything else follows from its fields: labels, flags, axes of a grid, records, the report, tests against the oracle.
"""

from kvstream.policies.base import BoundedPolicy as BoundedPolicy, Policy as Policy, Regions as Regions
from kvstream.policies.labels import read_label

# Each import registers a policy.
from kvstream.policies.full import Full as Full
from kvstream.policies.streaming_llm import StreamingLLM as StreamingLLM
from kvstream.policies.recent_only import RecentOnly as RecentOnly
from kvstream.policies.fix_size_l2 import FixSizeL2 as FixSizeL2
from kvstream.policies.sink_l2 import SinkL2 as SinkL2
from kvstream.policies.sink_random import SinkRandom as SinkRandom
from kvstream.policies.h2o import H2O as H2O
from kvstream.policies.tova import TOVA as TOVA
from kvstream.policies.snapkv import SnapKV as SnapKV
from kvstream.policies.keydiff import KeyDiff as KeyDiff
from kvstream.policies.l2_compress import L2Compress as L2Compress

_classes = [each for each in list(vars().values()) if isinstance(each, type) and issubclass(each, Policy)]
POLICIES: dict[str, type[Policy]] = {each.name: each for each in _classes if hasattr(each, "name")}
# Those that keep sinks and recents and choose between them, by what they choose by.
SCORERS: dict[str, str] = {}
for _name, _class in POLICIES.items():
    if _class.scorer and (_first := SCORERS.setdefault(_class.scorer, _name)) != _name:
        raise TypeError(f"{_name}: scorer {_class.scorer!r} is that of {_first}; give the class another")


def parse_policy(label: str) -> Policy:
    """Read a label back into its policy: `parse_policy(str(policy)) == policy`.

    Values may stand in the order of the fields or be named. Raises ValueError naming what is wrong and the remedy.
    """
    return read_label(label, POLICIES)
