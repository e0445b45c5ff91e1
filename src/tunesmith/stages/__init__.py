"""One module per stage: wiring between crafts, nothing else. Named by string in the pipeline table."""
