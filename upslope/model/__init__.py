"""The model: configuration as sum types, the transformer, its caches, its weights in and out, the checkpoint artifact."""
