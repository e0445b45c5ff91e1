"""What a data set is like, in numbers: lengths, languages, sources, verbs, clusters, duplicates, exclusions; and how two
sets differ. One pass over the rows, memory of some bytes per row. Computes and renders; reads no file and prints nothing."""
