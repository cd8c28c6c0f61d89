"""Watches for dips in a Monitor's evaluations as they come."""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from stabkit.detect.dips import SHORTEST
from stabkit.detect.lr_restarts import OnlineRestarts
from stabkit.detect.online_dips import DipNews, OnlineDips
from stabkit.detect.robust import BoolArray
from stabkit.monitor.measure.rows import Rows
from stabkit.monitor.react.events import OnlineEvent
from stabkit.store.accuracies import judged_metric

OTHER_SAMPLES = ("knn_bank",)  # metrics whose samples differ from one evaluation to the next


class DipWatch:
    """`OnlineDips` of every metric that is evaluated on the same samples each time.

    Events are those of the metric that the analysis would judge (`judged_metric`). So a dip of a
    training accuracy beside a held-out one is none, as afterwards. Neither is one that a restart of
    the learning rate explains.
    """

    def __init__(self, restarts: OnlineRestarts) -> None:
        """`restarts`: of the learning rate, so far."""
        self._restarts = restarts
        self._metrics: dict[str, OnlineDips] = {}
        self._counts: Counter[str] = Counter()  # evaluations of each metric
        self._known: dict[str, list[tuple[int, int]]] = {}

    def know(self, confirmed: Sequence[OnlineEvent]) -> None:
        """Take in dips that were confirmed before a resume; call it before any evaluation."""
        for event in confirmed:
            metric, trough = event.facts.get("metric"), event.facts.get("trough")
            if isinstance(metric, str) and type(trough) is int:
                self._known.setdefault(metric, []).append((event.step, trough))

    def rows(self, rows: Rows) -> list[OnlineEvent]:
        return []

    def evaluated(
        self, steps: Sequence[int], metric: str, correct: Sequence[BoolArray], chance: float
    ) -> list[OnlineEvent]:
        """Return the dips whose state the evaluations change; `correct` holds [n] for each."""
        if metric in OTHER_SAMPLES:
            return []
        if metric not in self._metrics:
            self._metrics[metric] = OnlineDips(
                chance if np.isfinite(chance) else 0.0, self._known.get(metric, ())
            )
            self._metrics[metric].restarts = self._restarts.steps
        dips = self._metrics[metric]
        self._counts[metric] += len(steps)
        news = [
            one for step, bits in zip(steps, correct, strict=True) for one in dips.add(step, bits)
        ]
        return self._events(metric, news)

    def finish(self) -> list[OnlineEvent]:
        """Confirm or withdraw the dips still suspected, as no evaluation follows; return them."""
        return [
            event
            for metric, dips in self._metrics.items()
            for event in self._events(metric, dips.finish())
        ]

    def _events(self, metric: str, news: list[DipNews]) -> list[OnlineEvent]:
        judged = metric == judged_metric(self._counts, SHORTEST)
        return [_event(metric, one) for one in news if judged or one.state == "withdrawn"]


def _event(metric: str, news: DipNews) -> OnlineEvent:
    facts = {
        "metric": metric,
        "found_at": news.at,
        "trough": int(news.dip["trough"]),
        "depth": float(news.dip["depth"]),
    }
    return OnlineEvent("dip", int(news.dip["onset"]), None, facts, news.state)
