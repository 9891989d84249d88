"""From records to a report: DuckDB queries, Altair charts, one HTML page. Knows the records, not kvstream."""
