"""Words of which tests make rows that are unlike each other."""

WORDS = (
    "amber", "birch", "cobalt", "delta", "ember", "flint", "grove", "hazel", "iris", "jade", "kelp", "lark", "maple",
    "nettle", "onyx", "pine", "quartz", "reed", "slate", "tundra",
)  # fmt: skip
