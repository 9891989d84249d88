"""Would the tests notice? Changes the code in many places, one at a time, in a copy; runs the tests that should fail.

    python tests/mutations.py              all (`make mutations`): a quarter of a minute for each
    python tests/mutations.py sinks tie    those whose name holds one of these words

Prints a line for each: caught, missed, outdated where the code no longer holds the line, or broken where pytest could
run no test. Exit code 1 unless all are caught. Before, the tests named are run once on the code as it is: they must
pass.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
COPIED = ("kvstream", "analysis", "sweeps", "tests", "docs", "README.md", "CHANGELOG.md", "pyproject.toml")
EXACT = ("tests/engine/test_exactness.py", "test_replay_and_decode_equal_the_oracle")
BY_HAND = ("tests/engine/test_by_hand.py", "")
RECORDS, DAMAGE = ("tests/records/test_records.py", ""), ("tests/records/test_damage.py", "")
SCHEDULER = ("tests/sweep/test_scheduler.py", "")
CHANGES = ("tests/grid/test_changes.py", "decides or digest")
SERVING = ("tests/analysis/words/test_serving.py", "not page")
PLANTED, RECALL = ("tests/inputs/test_recall.py", ""), ("tests/analysis/words/test_recall.py", "")
DIVERGENCE, DIVERGED = ("tests/engine/test_divergence.py", ""), ("tests/analysis/numbers/test_divergence.py", "")
QUERIES, CARDS = ("tests/analysis/numbers/test_queries.py", ""), ("tests/analysis/words/test_rules.py", "card")

PASSED, FAILED = 0, 1  # exit codes of pytest; others say that no test was run


@dataclass(frozen=True)
class Mutation:
    """A change of one line, and the test file, with a -k expression, that should notice."""

    name: str
    file: str
    old: str
    new: str
    noticed_by: tuple[str, str]


MUTATIONS = [
    # The engine
    Mutation("what was heard before the window counts", "kvstream/engine/backends/compiled_scan.py",
             "full - held == heard - 1", "full - held == heard", BY_HAND),
    Mutation("a key that left is still compared with", "kvstream/engine/backends/compiled_scan.py",
             "-score_UKS[u, k, slot]", "-0.0 * score_UKS[u, k, slot]", BY_HAND),
    Mutation("tie: norms are compared to the last bit", "kvstream/engine/scanned_layer.py",
             'tie(of_keys if self.policy.scored_by == "token" else exact)', "tie(exact)",
             ("tests/policies/test_against_oracle.py", "repeated and l2_compress")),
    Mutation("half precision: the first that arrives is not stored", "kvstream/engine/backends/scan_views.py",
             "if 0 <= t < tokens", "if 0 < t < tokens", ("tests/engine/test_backends.py", "half_precision")),
    Mutation("the oldest contested key is not compared", "kvstream/engine/backends/compiled_scan.py",
             "(rank >= np.uint64(first)) &", "(rank > np.uint64(first)) &",
             ("tests/policies/test_against_oracle.py", "keydiff")),
    Mutation("threads: each number is tried in single calls", "kvstream/engine/backends/pace.py",
             "RUN = 8", "RUN = 1", ("tests/engine/test_pace.py", "caches")),
    Mutation("kernel: a key that left is still compared with", "kvstream/engine/backends/cuda/shedding.py",
             "whole - own * score_out", "whole", ("tests/engine/test_cuda_kernels.py", "a_scan_keeps and keydiff")),
    Mutation("tiles: the slowest are taken", "kvstream/engine/backends/cuda/tiles.py",
             "first, best = next(iter(taken)), min(", "first, best = next(iter(taken)), max(",
             ("tests/engine/test_cuda_kernels.py", "tiles")),
    Mutation("sinks turn one too far", "kvstream/engine/sink_rotation.py",
             "rotation_of((shift,), layers[0].keys)", "rotation_of((shift + 1,), layers[0].keys)", EXACT),
    Mutation("older keys one position off", "kvstream/engine/positions.py",
             "max(0, token - self.budget) if", "max(0, token - self.budget + 1) if", EXACT),
    Mutation("frozen positions never freeze", "kvstream/engine/positions.py",
             "token if self.cap is None else min(token, self.cap)", "token", EXACT),
    Mutation("an evicted key is seen once more", "kvstream/engine/lifetimes.py",
             "NEVER, token + offer_BHN)", "NEVER, token + offer_BHN + 1)", EXACT),
    Mutation("tie: of equals an older one leaves", "kvstream/engine/contest.py",
             "return 16 * torch.finfo(dtype).eps", "return 0.0",
             ("tests/engine/test_exactness.py", "equal_norms")),
    Mutation("decoding overwrites the wrong slot", "kvstream/engine/slot_layout.py",
             "self.sinks + (token - self.sinks) % (self.recent + 1)", "self.sinks + token % (self.recent + 1)",
             EXACT),
    Mutation("a window one too wide", "kvstream/engine/bounded_chunk.py",
             "tokens.start - begin, layer.layout.recent, keys_BHSD)",
             "tokens.start - begin, layer.layout.recent + 1, keys_BHSD)", EXACT),
    Mutation("scores forget the logits' shift", "kvstream/engine/vocabulary_blocks.py",
             "(self.shift_T - highest_T).exp_()", "1.0",
             ("tests/engine/test_exactness.py", "whole_vocabulary")),
    Mutation("a model that computes something else passes", "kvstream/engine/model_check.py",
             "MEAN_FACTOR, WORST_FACTOR = 4.0, 16.0", "MEAN_FACTOR, WORST_FACTOR = 4e12, 16e12",
             ("tests/engine/test_model_check.py", "something_else")),
    # Policies
    Mutation("keep_low keeps the high", "kvstream/policies/fix_size_l2.py",
             'return -norms_BHS if self.strategy == "keep_low" else norms_BHS',
             'return norms_BHS if self.strategy == "keep_low" else -norms_BHS', EXACT),
    Mutation("draws forget the layer", "kvstream/policies/draws.py",
             "^ np.uint64(layer)", "^ np.uint64(0 * layer)", EXACT),
    # Cells and records
    Mutation("a cell's key forgets its dtype", "kvstream/grid/cells.py",
             '"device": self.device.partition(":")[0],\n            "dtype": self.dtype,',
             '"device": self.device.partition(":")[0],', CHANGES),
    Mutation("the engine is in no key", "kvstream/grid/code_version.py",
             '_ALL = ("policies", "engine", ', '_ALL = ("policies", ', CHANGES),
    Mutation("damaged rows count as finished", "kvstream/records/store.py",
             "if sha256_of(data) != sha256:", "if not data:", DAMAGE),
    Mutation("a record's name is not in its checksum", "kvstream/records/store.py",
             'sha256_of(name.encode() + b"\\n" + _json(record))', "sha256_of(_json(record))", DAMAGE),
    Mutation("rows that no record names stay", "kvstream/records/store.py",
             "self.storage.remove(name)\n            elif often", "pass\n            elif often", RECORDS),
    # The scheduler
    Mutation("a cell is tried three times", "kvstream/sweep/retries.py", "MAX_ATTEMPTS = 2", "MAX_ATTEMPTS = 3",
             SCHEDULER),
    Mutation("three pieces of work for a worker", "kvstream/sweep/scheduler.py", "IN_FLIGHT = 2", "IN_FLIGHT = 3",
             SCHEDULER),
    Mutation("what waited behind a dead worker is lost", "kvstream/sweep/scheduler.py",
             "self._waiting.put_first(held[1:])", "pass", SCHEDULER),
    Mutation("latency before quality", "kvstream/sweep/scheduler.py",
             "for kind in (quality, latency)", "for kind in (latency, quality)", SCHEDULER),
    # The report
    Mutation("recall: a question one token too late", "kvstream/inputs/recall.py",
             "answers.append(Answer(place + distance,", "answers.append(Answer(place + distance + 1,", PLANTED),
    Mutation("recall: facts may lie over another's question", "kvstream/inputs/recall.py",
             "free_N &= taken_T", "free_N |= taken_T", PLANTED),
    Mutation("recall: one right token is a right answer", "analysis/queries/answered.sql",
             "bool_and(correct)", "bool_or(correct)", RECALL),
    Mutation("recall: repeats of four tokens", "analysis/queries/repeated.sql",
             "ROWS 4 PRECEDING", "ROWS 3 PRECEDING", RECALL),
    Mutation("recall: policies are blamed where full does not recall", "analysis/queries/recall.sql",
             "> 0.1, false)", "> -0.1, false)", RECALL),
    Mutation("rank: a token is above itself", "kvstream/engine/vocabulary_blocks.py",
             "best.above_T.long() - (chosen_T > best.own_T).long()", "best.above_T.long()", DIVERGENCE),
    Mutation("KL: a shift of exponents forgets the mean", "kvstream/engine/vocabulary_blocks.py",
             "self.mean_TE *= by_T[:, None] if len(self.mean_TE) else 1", "pass", DIVERGENCE),
    Mutation("KL of logits that were rounded", "kvstream/engine/vocabulary_blocks.py",
             "more and wide != hidden_TE.dtype", "False", DIVERGENCE),
    Mutation("KL: compared with the token before", "kvstream/engine/replay.py",
             "slice(start, start +", "slice(start - (start > 0), start - (start > 0) +", DIVERGENCE),
    Mutation("attention to the oldest recent token is lost", "kvstream/engine/attention_loss.py",
             "seen - layer.layout.recent) :", "seen - layer.layout.recent + 1) :",
             ("tests/engine/test_attention_loss.py", "recent_only or streaming")),
    Mutation("KL: a quantile of 95 %", "analysis/queries/quantiles.sql",
             "[0.5, 0.99,", "[0.5, 0.95,", DIVERGED),
    Mutation("top1: the higher the better", "analysis/queries/costs.sql",
             "ELSE 100 - same_top_percent END AS cost,", "ELSE same_top_percent END AS cost,", DIVERGED),
    Mutation("PPL of full over that of the policy", "analysis/queries/perplexity.sql",
             "exp(nll - full_nll) AS ppl_ratio", "exp(full_nll - nll) AS ppl_ratio", QUERIES),
    Mutation("PPL as a mean over documents", "analysis/queries/perplexity.sql",
             "exp(sum(nll_sum) / nullif(sum(n), 0)) AS ppl_corpus", "exp(avg(nll_sum / nullif(n, 0))) AS ppl_corpus",
             QUERIES),
    Mutation("what other work took is called faster", "analysis/queries/differences.sql",
             "WHEN high < band_low * (1 - taken)", "WHEN high < band_low",
             ("tests/analysis/page/test_report_latency.py", "other_work_explains")),
    Mutation("memory that grows is an answer", "analysis/queries/cards.sql",
             "WHERE kv_percent <= getvariable('memory') AND skip_layers = ''",
             "WHERE kv_percent <= getvariable('memory')",
             ("tests/analysis/words/test_rules.py", "memory_that_grows")),
    Mutation("a card takes the most memory", "analysis/queries/cards.sql",
             "ORDER BY kv_mb, cost, policy) = 1", "ORDER BY kv_mb DESC, cost, policy) = 1",
             CARDS),
    Mutation("a context shift takes the sinks, too", "analysis/words/serving.py",
             'most - (most - policy["start"]) // 2', "most - most // 2", SERVING),
    Mutation("sizes rounded below what was asked", "analysis/words/serving.py",
             "-(-size // block) * block", "size // block * block", SERVING),
    Mutation("a dry run takes any folder", "kvstream/sweep/main.py",
             "plan.records.storage.require_place()", "pass", ("tests/sweep/test_preflight.py", "same_line")),
]  # fmt: skip


def run(folder: Path, tests: tuple[str, str]) -> int:
    """Run these tests on the code in `folder`: pytest's exit code."""
    file, chosen = tests
    command = [sys.executable, "-m", "pytest", file, "-x", "-p", "no:cacheprovider", "-m", "not long and not timed"]
    command += ["-k", chosen] if chosen else []
    environment = os.environ | {"PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True).returncode


def outcome(folder: Path, mutation: Mutation) -> str:
    """Change the copy, run the tests, and change it back."""
    path = folder / mutation.file
    code = path.read_text() if path.exists() else ""
    if code.count(mutation.old) != 1:
        return "outdated"
    path.write_text(code.replace(mutation.old, mutation.new))
    try:
        return {PASSED: "missed", FAILED: "caught"}.get(run(folder, mutation.noticed_by), "broken")
    finally:
        path.write_text(code)


def main() -> int:
    """Run those asked for; returns the exit code."""
    words = sys.argv[1:]
    chosen = [each for each in MUTATIONS if not words or any(word in each.name for word in words)]
    with tempfile.TemporaryDirectory(prefix="mutations") as place:
        folder = Path(place)
        for name in COPIED:
            if (ROOT / name).is_dir():
                shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(ROOT / name, folder / name)
        for tests in dict.fromkeys(each.noticed_by for each in chosen):
            if run(folder, tests) != PASSED:
                print(f"{' -k '.join(tests)}: fails on the code as it is")
                return 1
        found = []
        for each in chosen:
            clock = time.monotonic()
            found.append(outcome(folder, each))
            print(f"{found[-1]:8}  {each.name}  ({each.file}, {time.monotonic() - clock:.0f} s)", flush=True)
    print(f"{found.count('caught')} of {len(found)} caught")
    return int(set(found) != {"caught"})


if __name__ == "__main__":
    sys.exit(main())
