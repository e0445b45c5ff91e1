"""Trackers outside of this program (TensorBoard, Weights & Biases, MLflow, Trackio) as sinks of events.

Each is imported when a recipe names it in `runtime.report_to`. Knows events and run folders, no stage and no recipe.
"""

from tunesmith.registry import Registry

TRACKERS = Registry(
    "tracker",
    {
        "tensorboard": "tunesmith.sinks.tensorboard:open_tracker",
        "wandb": "tunesmith.sinks.wandb:open_tracker",
        "mlflow": "tunesmith.sinks.mlflow:open_tracker",
        "trackio": "tunesmith.sinks.trackio:open_tracker",
    },
)
