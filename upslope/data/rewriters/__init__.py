"""Rewriters: each file holds one `Rewrite`, found by the name of the file."""
