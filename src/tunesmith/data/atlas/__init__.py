"""The map of a data set: every row a point in space, near its like. build.py says in which order the pieces meet."""
