"""The door: the `tunesmith` command. Knows no parameter of its own and computes nothing; it shows what others return."""
