"""Optimizers by role of parameter, and learning-rate schedules."""
