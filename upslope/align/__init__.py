"""Alignment: learned rewards, and gates where an average would let quality buy back a violation."""
