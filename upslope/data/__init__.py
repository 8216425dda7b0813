"""Data: from raw pages to a curated corpus. Steps read, annotate, rewrite and link; only a `Curation` drops."""
