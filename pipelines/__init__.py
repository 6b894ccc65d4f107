"""One module per stage, the command line, guidance, shards and training."""
