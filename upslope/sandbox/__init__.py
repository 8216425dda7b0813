"""Untrusted code in a killable child process; what the machine could not isolate is said, never assumed."""
