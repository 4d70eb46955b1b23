"""What every stage shares: state, geometry, errors, the BIDS edges and the stage engine."""

if __name__ == "pipeline":
    raise ImportError("import brainstage.pipeline, not pipeline: the bare name collides with other packages")
