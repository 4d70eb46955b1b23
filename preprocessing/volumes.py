"""Volumes of the brain in native space."""

from __future__ import annotations

from typing import Final

VOLUMES_VERSION: Final = "1"
"""Raised when a volume becomes another: what is usual by one version is not by the next."""
