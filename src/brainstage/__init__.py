"""brainstage: from a BIDS directory of T1w MRI to quality-controlled, calibrated predictions.

Importing this package is light: no torch, no ANTs. The stages are plain functions over the frozen
state types of :mod:`brainstage.pipeline`. For research; never a diagnosis.
"""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("brainstage")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0+unknown"

__all__ = ["__version__"]
