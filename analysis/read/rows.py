"""What is wrong with a cell's rows: each token scored once, each time measured once. Knows no files."""

from collections import Counter
from typing import Any

import numpy as np
import pyarrow as pa

from analysis.read.contract import ALL_FIELDS, CONTENDER, PREFILLED, check_fields


def quality_problem(fields: dict[str, Any], table: pa.Table) -> str | None:
    """What is wrong with a quality cell's rows: each position, or each `every`-th, must be scored exactly once."""
    tokens, every = fields["tokens"], fields.get("every") or 1
    if max(fields["lengths"], default=None) != tokens:
        return f"lengths: {fields['lengths']} does not end at tokens={tokens}"
    if not np.array_equal(np.sort(table["position"].to_numpy()), np.arange(every, tokens, every)):
        steps = f" in steps of {every}" if every > 1 else ""
        return f"position: the file does not score {every}…{tokens - 1}{steps} once each"
    wrong = [answer for answer in fields.get("answers") or [] if not is_inside(answer, tokens)]
    return f"answers: {wrong[0]} is no position, length and distance within {tokens} tokens" if wrong else None


def is_inside(answer: Any, tokens: int) -> bool:
    """Whether an answer, a list or nothing, is three whole numbers, and lies within a text with the fact it repeats."""
    if answer is None or len(answer) != 3 or any(type(number) is not int for number in answer):
        return False
    position, length, distance = answer
    return bool(1 <= distance <= position and 1 <= length <= tokens - position)


def latency_problem(fields: dict[str, Any], table: pa.Table) -> str | None:
    """What is wrong with a latency cell's rows: all prefills and steps of all contenders, each with a positive time."""
    contenders = fields.get("contenders")
    if not isinstance(contenders, list) or not contenders or not isinstance(fields.get("noise"), dict):
        return "contenders, noise: missing"
    for contender in contenders:
        check_fields(contender, CONTENDER | ALL_FIELDS, "contenders")
    expected: set[tuple[Any, ...]] = set()
    for contender in contenders:
        steps = [("step", number, step) for number in range(fields["rounds"]) for step in range(fields["steps"])]
        prefills = [("ttft", number, 0) for number in range(fields["prefills"])]
        taken = steps + (prefills if contender["role"] in PREFILLED else [])
        expected |= {(contender["label"], *sample) for sample in taken}
    found = Counter(zip(*(table[name].to_pylist() for name in ("policy", "phase", "round", "step"))))
    if set(found) != expected or max(found.values()) > 1:
        return "policy, phase, round, step: the file does not hold every prefill and step of every contender once"
    seconds = table["seconds"].to_numpy()
    if not (np.isfinite(seconds) & (seconds > 0)).all():
        return "seconds: not all are finite and positive"
    return None
