"""Tensors and networks; knows no BIDS and no ANTs."""

if __name__ == "models":
    raise ImportError("import brainstage.models, not models: the bare name collides with other packages")
