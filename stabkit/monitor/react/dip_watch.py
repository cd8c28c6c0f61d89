"""Watches for dips in a Monitor's evaluations as they come."""

from collections.abc import Sequence

import numpy as np

from stabkit.detect.online_dips import DipNews, OnlineDips
from stabkit.detect.robust import BoolArray
from stabkit.monitor.measure.rows import Rows
from stabkit.monitor.react.events import OnlineEvent

OTHER_SAMPLES = ("knn_bank",)  # metrics whose samples differ from one evaluation to the next


class DipWatch:
    """`OnlineDips` of every metric that is evaluated on the same samples each time."""

    def __init__(self) -> None:
        self._metrics: dict[str, OnlineDips] = {}

    def rows(self, rows: Rows) -> list[OnlineEvent]:
        return []

    def evaluated(
        self, steps: Sequence[int], metric: str, correct: Sequence[BoolArray], chance: float
    ) -> list[OnlineEvent]:
        """Return the dips whose state the evaluations change; `correct` holds [n] for each."""
        if metric in OTHER_SAMPLES:
            return []
        if metric not in self._metrics:
            self._metrics[metric] = OnlineDips(chance if np.isfinite(chance) else 0.0)
        dips = self._metrics[metric]
        return [
            _event(metric, news)
            for step, bits in zip(steps, correct, strict=True)
            for news in dips.add(step, bits)
        ]

    def finish(self) -> list[OnlineEvent]:
        """Confirm or withdraw the dips still suspected, as no evaluation follows; return them."""
        return [
            _event(metric, news) for metric, dips in self._metrics.items() for news in dips.finish()
        ]


def _event(metric: str, news: DipNews) -> OnlineEvent:
    facts = {
        "metric": metric,
        "found_at": news.at,
        "trough": int(news.dip["trough"]),
        "depth": float(news.dip["depth"]),
    }
    return OnlineEvent("dip", int(news.dip["onset"]), None, facts, news.state)
