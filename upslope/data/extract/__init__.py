"""Extraction: HTML bytes → Markdown text that keeps code, mathematics and tables, and drops what surrounds the page."""
