"""docs/records.md says what is there: its example runs, its tables name the columns that records have."""

import math
import re
from contextlib import chdir
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from record_cases import file_of, swept

from kvstream.engine.chunks import PART_TOKENS
from kvstream.measure.latency import LATENCY_ROWS
from kvstream.measure.quality import TOKEN_ROWS
from kvstream.policies import Full, StreamingLLM

DOCUMENT = (Path(__file__).parents[2] / "docs" / "records.md").read_text()


def test_the_example_prints_each_cells_perplexity(world, tiny_neox, tmp_path, capsys):
    records, cells = swept(world, tiny_neox(), tmp_path / "records" / "quick", (Full(), StreamingLLM(2, 14)), 2)
    [example] = re.findall(r"```python\n(.*?)```", DOCUMENT, re.DOTALL)
    records.write_named(cells[0].key, "parquet", b"rows that no record names")
    with chdir(tmp_path):
        exec(compile(example, "docs/records.md", "exec"), {})
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    told = {(policy, document): float(number) for policy, document, _, number in lines}
    assert len(told) == len(lines) == 4
    for cell in cells:
        rows = pq.read_table(records.storage.folder / file_of(records, cell.key))
        perplexity = math.exp(rows["nll_nats"].to_numpy().astype(float).mean())
        assert told[str(cell.policy), cell.document.name] == pytest.approx(perplexity, abs=0.0051)


@pytest.mark.parametrize("schema", [TOKEN_ROWS, LATENCY_ROWS])
def test_its_tables_are_the_columns(schema):
    tables = re.findall(r"\| Column \|.*?\n\n", DOCUMENT, re.DOTALL)
    listed = [re.findall(r"^\| `(\w+)` \| (\w+) \|", table, re.MULTILINE) for table in tables]
    assert [(field.name, str(field.type)) for field in schema] in listed


def test_its_length_of_a_part_is_the_engines():
    assert f"more\nthan {PART_TOKENS:,} tokens" in DOCUMENT
