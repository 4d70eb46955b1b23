"""A T1w head becomes a brain in template space; one step a file, pure functions over state."""

if __name__ == "preprocessing":
    raise ImportError(
        "import brainstage.preprocessing, not preprocessing: the bare name collides with other packages"
    )
