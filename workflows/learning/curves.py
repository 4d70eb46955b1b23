"""The curves of tuning for TensorBoard, where it is installed and asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from brainstage.models.training import LogRow
from brainstage.pipeline.errors import ToolNotFoundError

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


@contextmanager
def curves(folder: Path | None) -> Iterator[Callable[[str, LogRow], None]]:
    """Give a function that draws one epoch of a named run, as it ends; it does nothing without a folder.

    Raises
    ------
    ToolNotFoundError
        When TensorBoard is not installed.
    """
    if folder is None:
        yield lambda *_: None
        return
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ToolNotFoundError(
            "--tensorboard needs TensorBoard: install brainstage[tensorboard], or leave the option out"
        ) from error
    writers: dict[str, SummaryWriter] = {}

    def draw(name: str, row: LogRow) -> None:
        run = f"{name}-fold-{row.fold}"
        if run not in writers:
            writers[run] = SummaryWriter(str(folder / run))
        for what, loss in (("training", row.training_loss), ("validation", row.validation_loss)):
            if loss is not None:
                writers[run].add_scalar(f"loss/{what}", loss, row.epoch)
        writers[run].flush()

    try:
        yield draw
    finally:
        for writer in writers.values():
            writer.close()
