"""Observers that write a run's figures where people look on: TensorBoard, MLflow.

    with TensorBoard("board") as board, Experiment(..., observer=board) as run:
        ...

Each needs an extra, `pip install '.[tensorboard]'` or `'.[mlflow]'` in the clone, and writes to a
local folder; `--observe tensorboard` asks for it on the command line. Figures are written at the
end of each cycle, against the number of labels.
"""

from upslope.observers.figures import together
from upslope.observers.mlflow import MLflow
from upslope.observers.tensorboard import TensorBoard

__all__ = ["MLflow", "TensorBoard", "together"]
