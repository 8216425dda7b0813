"""Safety: attacks over an attempt tree with a budget, detectors whose errors are measured, decisions bound to one object."""
