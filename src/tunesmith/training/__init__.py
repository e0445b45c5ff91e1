"""The training craft: packing, the loop, losses, checkpoints. Knows no files of other crafts."""
