"""Search for the options of a study's row, judged on a validation split of train: nothing is evaluated on test.

results/<study>/tuning/<row>.json     the record: what was searched, every trial, the best; what `tuned` of a row names
                       <row>.journal  Optuna's own journal, from which the search goes on, on any machine

search.py   what is searched: a row's entry in the study's `tuning`
tuner.py    one process asks Optuna for trials, hears of every epoch, keeps journal and record
trials.py   each trial is trained in a process of its own, whose run directories are removed when it is done
"""

from __future__ import annotations

from corsd_lib.errors import missing_package

try:
    import optuna  # noqa: F401
except ImportError as error:
    raise missing_package("tuning", "optuna", error) from error

from corsd_lib.tuning.search import Search
from corsd_lib.tuning.tuner import tune

__all__ = ["Search", "tune"]
