"""One trainer: batches of columns, losses that are already divided by global totals, one step, one loop."""
