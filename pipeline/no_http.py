"""Closes the HTTP port of a Dask scheduler or worker, which answers whoever reaches it, without any key.

A preload of Dask: engines that start their own scheduler and workers give it to them, and whoever starts others with
``--preload brainstage.pipeline.no_http`` does the same.
"""

from __future__ import annotations

from typing import Any, Final

PRELOAD: Final = __name__
SETTINGS: Final[dict[str, Any]] = {
    # What the port would answer until it is closed, a moment after it was opened: nothing.
    "distributed.scheduler.http.routes": [],
    "distributed.worker.http.routes": [],
}


async def dask_setup(server: Any) -> None:  # noqa: ANN401 - the library has no types
    """Close the port; called by Dask when a scheduler or worker starts.

    Parameters
    ----------
    server : distributed.Scheduler or distributed.Worker
    """
    server.http_server.stop()
    server.services.pop("dashboard", None)
    await server.http_server.close_all_connections()
