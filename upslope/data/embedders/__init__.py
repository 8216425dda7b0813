"""Embedders: one file per kind. A class of one's own is named by its import path, `my_lab.vectors:Encoder`."""
