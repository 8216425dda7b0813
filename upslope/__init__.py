"""upslope: the frontier-LLM recipe as one program."""
