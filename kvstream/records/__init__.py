"""Rows ↔ Parquet with commit records, on a disk or in an object store."""
