"""Reports of a run: one self-contained page, a notebook display, lines for the terminal. They only read the store."""
