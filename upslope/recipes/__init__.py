"""Recipes: functions that return a Recipe. One file per preset, the function named like the file."""
