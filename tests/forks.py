"""Processes that tests kill: forked off one that has the library loaded, so that each starts at once.

A test process has one such server, and it loads what it is told before its first fork: hence one
list for all tests.
"""

import multiprocessing

forks = multiprocessing.get_context("forkserver")
# Only what is installed: a fork server of Python 3.11 does not find the tests' own modules.
forks.set_forkserver_preload(
    [
        "mlflow",
        "onnxruntime",
        "optuna",
        "pandera.polars",
        "penstock.data.events.opening",
        "penstock.data.ingest",
        "penstock.features.build",
        "penstock.features.materialize",
        "penstock.features.sqlite_online_store",
        "penstock.features.store",
        "penstock.features.streaming",
        "penstock.registry.promotion",
        "penstock.registry.registration",
        "penstock.serving.batch",
        "penstock.serving.feedback",
        "penstock.serving.feedback_files",
        "penstock.serving.log_collection",
        "penstock.serving.prediction_log",
        "penstock.serving.task_store",
        "penstock.serving.task_worker",
        "penstock.training.estimators.scikit",
        "penstock.training.search.tuning",
        "penstock.training.tracking",
    ]
)
