"""Assembly: the only place where the layers meet."""

if __name__ == "workflows":
    raise ImportError(
        "import brainstage.workflows, not workflows: the bare name collides with other packages"
    )
