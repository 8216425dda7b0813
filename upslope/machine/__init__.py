"""The machine: identity, store, stages, graph, runs, events, launchers. It knows nothing of language models."""
