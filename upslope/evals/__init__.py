"""Evaluation: items apart from scoring, one row per item, every number with its conditions and interval."""
