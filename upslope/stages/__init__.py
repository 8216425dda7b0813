"""Stages: one file per kind, config + `run(ctx)`: the binding between the libraries and the machine."""
