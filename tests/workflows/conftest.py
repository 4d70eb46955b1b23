"""What the tests of the workflows share."""

from __future__ import annotations

import pytest

from brainstage.workflows.synthetic.anatomy import HeadAnatomy, load_anatomy


@pytest.fixture(scope="session")
def anatomy() -> HeadAnatomy:
    """Paint the head around the embedded template once a session; it takes seconds."""
    return load_anatomy()
