"""Tests that accuracy control finds the groups to revert if they are known, within its budget, and reports them."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from itertools import combinations
from pathlib import Path
from xml.etree import ElementTree

import msgspec
import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from rich.console import Console

from misgnet_calibration.algorithms.accuracy_control import (
    NO_NUMBERS,
    ControlReport,
    Effect,
    Group,
    Limit,
    Measurement,
    Step,
    control,
    groups_of,
    listed,
    loss,
    passes,
    ties_of,
)
from misgnet_calibration.algorithms.accuracy_control.decision import (
    best,
    closest,
    excess,
    next_prefix,
    prefixes,
    presumed_failed,
    rank,
    reason,
    seconds_left,
)
from misgnet_calibration.algorithms.accuracy_control.groups import group_name
from misgnet_calibration.onnx_graph.graph import Graph
from misgnet_calibration.quantizer.placement import activations, int8_share, quantizer_sites
from misgnet_calibration.quantizer.quantize import quantize
from misgnet_calibration.quantizer.recipes import CPU, RTX, TENSORRT, Recipe
from misgnet_calibration.quantizer.rules import EVERYTHING_RULES
from misgnet_calibration.statistics.observers import Histogram, Range
from misgnet_export.evidence import ControlRecord, ControlSpeed, record_of
from misgnet_export.report import render
from misgnet_export.report.control import control_table, draw_control, step_rows, summary
from misgnet_runtime.accuracy.gate import decide, f1_drop
from misgnet_runtime.accuracy.limit import F1Limit
from misgnet_runtime.accuracy.metrics import Confusion
from misgnet_runtime.bundle.quantization import RepairEntry
from misgnet_runtime.engines.onnxruntime import OnnxRuntimeEngine
from misgnet_runtime.errors import InputError
from misgnet_runtime.storage.schema import encode
from support.graphs import images, parsed, two_branch
from support.reports import Page, data_of, parity, report_of

LIMIT = 0.5
FOREVER = 1e9


@dataclass(kw_only=True)
class Landscape:
    """A fake evaluation with known losses; each evaluation takes a second."""

    damage: Mapping[str, float]  # points lost by each quantized group
    costs: Mapping[str, int] = field(default_factory=dict)
    pairs: Mapping[tuple[str, str], float] = field(default_factory=dict)  # points lost unless both groups are float
    rest: float = 0.0
    noise: float = 0.0  # standard deviation of F1 between states
    changed: bool = True
    duration: Callable[[int], float] = lambda _: 1.0
    now: float = 0.0
    asked: list[frozenset[str]] = field(default_factory=list)

    @property
    def groups(self) -> tuple[Group, ...]:
        return tuple(Group(name, (f"{name}/MatMul",), self.costs.get(name, 10)) for name in self.damage)

    def points(self, floats: frozenset[str]) -> float:
        single = sum(value for name, value in self.damage.items() if name not in floats)
        return self.rest + single + sum(value for pair, value in self.pairs.items() if not floats.issuperset(pair))

    def evaluate(self, floats: frozenset[str]) -> Measurement:
        self.asked.append(floats)
        self.now += self.duration(len(self.asked))
        points = self.points(floats)
        rng = np.random.default_rng([len(floats), *sorted(map(hash_of, floats))])
        drop = points + (self.noise * rng.standard_normal() if floats else 0)
        agreement = 1 - max(0.0, min(points, 100)) / 100
        return Measurement(drop if self.changed else None, agreement, max(0.0, points) / 100)

    def control(self, limit: float = LIMIT, budget: float = FOREVER, **options: object) -> ControlReport:
        return control(self.groups, self.evaluate, limit, budget, clock=lambda: self.now, **options)


def hash_of(name: str) -> int:
    return int.from_bytes(name.encode(), "big") % 2**32


def named(count: int, **damage: float) -> dict[str, float]:
    """Returns ``count`` harmless groups g0, g1, ..., except those in ``damage``."""
    return {f"g{i}": damage.get(f"g{i}", 0.001) for i in range(count)}


def optimum(landscape: Landscape, limit: float) -> int:
    """Returns the fewest MACs in float that keep the limit, by trying every subset."""
    names = list(landscape.damage)
    subsets = (frozenset(c) for size in range(len(names) + 1) for c in combinations(names, size))
    costs = {group.name: group.multiply_adds for group in landscape.groups}
    return min(sum(costs[name] for name in s) for s in subsets if landscape.points(s) <= limit)


def float_cost(report: ControlReport) -> int:
    return sum(group.multiply_adds for group in report.groups if group.name in report.result.float_groups)


# The search


def test_a_graph_that_passes_quantized_is_not_changed():
    landscape = Landscape(damage=named(5))
    report = landscape.control()
    assert landscape.asked == [frozenset()]
    assert (report.passed, report.stopped, report.effects) == (True, "at the start", ())
    assert report.result.int8_share == 1 and report.float_nodes == frozenset()


@pytest.mark.parametrize("broken", ["g0", "g7", "g19"])
def test_one_broken_group_is_reverted_alone(broken: str):
    costs = {f"g{i}": 100 - i for i in range(20)}
    landscape = Landscape(damage=named(20, **{broken: 40}), costs=costs)
    report = landscape.control()
    assert report.passed and report.stopped == "finished"
    assert report.result.float_groups == (broken,)
    assert report.float_nodes == {f"{broken}/MatMul"}
    assert len(landscape.asked) <= 22


def test_the_cheapest_sufficient_group_ends_the_ranking():
    """g2 and g0 are each sufficient; g2 costs less, so no further group is measured."""
    landscape = Landscape(damage={"g0": 1, "g1": 0.1, "g2": 1}, costs={"g0": 90, "g1": 5, "g2": 20})
    report = landscape.control(limit=1.2)
    assert report.result.float_groups == ("g2",)
    assert landscape.asked == [set(), {"g0", "g1", "g2"}, {"g1"}, {"g2"}]


@pytest.mark.parametrize("count", [1, 2, 3, 5, 11, 30])
def test_only_the_broken_groups_are_reverted(count: int):
    broken = {f"g{3 * i % 40}": 5.0 + i for i in range(count)}
    landscape = Landscape(damage=named(40, **broken), costs={f"g{i}": 10 + 7 * i % 13 for i in range(40)})
    report = landscape.control()
    assert set(report.result.float_groups) == set(broken)
    assert float_cost(report) == sum(landscape.costs[name] for name in broken)
    one_by_one = 2 + 40 + max(0, count - 1)  # NNCF's path, with no groups quantized again
    assert len(landscape.asked) <= one_by_one + count.bit_length() + count


def test_many_groups_take_fewer_measurements_than_one_by_one():
    landscape = Landscape(
        damage=named(64, **{f"g{i}": 10.0 for i in range(0, 64, 2)}), costs={f"g{i}": 10 for i in range(64)}
    )
    reverts = [s for s in landscape.control().steps if s.phase == "revert"]
    assert len(reverts) <= 10 < 32


def test_groups_that_only_help_together_are_found_and_the_others_regained():
    """Two groups share a broken activation: neither alone has an effect, so the ranking cannot find them."""
    landscape = Landscape(damage=named(30), costs={f"g{i}": 10 + i for i in range(30)}, pairs={("g4", "g22"): 20.0})
    report = landscape.control()
    assert report.passed
    assert set(report.result.float_groups) == {"g4", "g22"}
    assert len(landscape.asked) < 2 + 30 + 30  # quantizing again one by one would take 20 or more


TIED = Landscape(damage=named(30), costs={f"g{i}": 10 + i for i in range(30)}, pairs={("g4", "g22"): 20.0})


def test_tied_groups_are_ranked_together():
    landscape = replace(TIED, asked=[])
    ties = [("g1", "g2"), ("g22", "g4"), ("g3", "g29")]
    report = landscape.control(ties=ties)
    assert report.passed and set(report.result.float_groups) == {"g4", "g22"}
    assert report.effects[0].groups == ("g22", "g4")
    assert len(landscape.asked) == 2 + 30 + 2, "the cheaper tie, and the one that passes"


def test_ties_are_not_measured_if_single_groups_explain_the_loss():
    landscape = Landscape(damage=named(10, g1=3, g5=3))
    landscape.control(ties=[("g2", "g3")])
    assert frozenset(["g2", "g3"]) not in landscape.asked


def test_a_tie_of_unknown_groups_is_refused():
    with pytest.raises(InputError, match="'x', which is not one of the groups"):
        Landscape(damage=named(3)).control(ties=[("g1", "x")])


@pytest.mark.parametrize("other", range(0, 63, 6))
def test_sixty_unneeded_groups_are_quantized_again_in_few_measurements(other: int):
    landscape = Landscape(
        damage=named(64), costs={f"g{i}": 10 + i for i in range(64)}, pairs={(f"g{other}", "g63"): 20.0}
    )
    report = landscape.control()
    assert set(report.result.float_groups) == {f"g{other}", "g63"}
    assert len([s for s in report.steps if s.phase == "regain"]) <= 15


def test_largest_groups_are_quantized_again_first():
    """The ranking reverts the cheap a and b first; the costly c then makes them unnecessary."""
    landscape = Landscape(damage={"a": 3, "b": 3, "c": 10}, costs={"a": 1, "b": 4, "c": 60})
    report = landscape.control(limit=6)
    regained = [s for s in report.steps if s.phase == "regain" and s.accepted]
    assert report.result.float_groups == ("c",)
    assert regained == [] or regained[0].changed == ("b",)
    assert report.result.measurement.f1_drop == 6


def test_regaining_starts_with_the_largest_group():
    names = {"a": 0.01, "b": 0.01, "c": 4.0, "d": 4.0}
    landscape = Landscape(
        damage=names, costs={"a": 5, "b": 50, "c": 20, "d": 20}, pairs={("a", "b"): 3.0, ("a", "c"): 3.0}
    )
    report = landscape.control()
    regains = [s for s in report.steps if s.phase == "regain"]
    sizes = [landscape.costs[s.changed[0]] for s in regains]
    assert report.passed and sizes == sorted(sizes, reverse=True)


def test_a_group_that_improves_the_metric_stays_quantized():
    landscape = Landscape(damage={"a": 1.0, "b": -0.4, "c": 0.2, "d": 0.1})
    report = landscape.control(limit=0.2)
    assert report.passed and report.result.float_groups == ("a",)


def test_a_negative_limit_requires_a_gain():
    """With b quantized the graph is better than the float one, although everything float is not."""
    landscape = Landscape(damage={"a": 1.0, "b": -0.4, "c": 0.05})
    report = landscape.control(limit=-0.3)
    assert report.passed and report.result.float_groups == ("a",)
    assert frozenset("abc") not in landscape.asked


def test_an_unreachable_gain_reports_the_closest_state():
    landscape = Landscape(damage={"a": 1.0, "b": -0.4, "c": 0.05})
    report = landscape.control(limit=-3)
    assert not report.passed and report.stopped == "finished"
    assert report.result.measurement.f1_drop == min(loss(s.measurement) for s in report.steps)


def test_a_loss_outside_the_groups_is_reported_after_two_measurements():
    landscape = Landscape(damage=named(30, g3=8), rest=2)
    report = landscape.control()
    assert (report.passed, report.stopped, len(report.steps)) == (False, "outside the groups", 2)
    assert report.result.number == 2 and report.result.measurement.f1_drop == pytest.approx(2)


@pytest.mark.parametrize(("limit", "stopped"), [(LIMIT, "outside the groups"), (-1, "finished")])
def test_without_groups_there_is_nothing_to_revert(limit: float, stopped: str):
    report = control((), lambda _: Measurement(3.0, 0.9, 0.1), limit, FOREVER)
    assert (report.passed, report.stopped, len(report.steps)) == (False, stopped, 1)


@pytest.mark.parametrize("count", [10, 40])
def test_noise_in_f1_does_not_hide_the_broken_groups(count: int):
    """A standard deviation of 0.1 points with a limit of 0.5: the logit error ranks groups that F1 cannot."""
    landscape = Landscape(damage=named(count, g2=0.8, g7=0.7), noise=0.1)
    report = landscape.control()
    assert report.passed
    assert {"g2", "g7"} & set(report.result.float_groups)
    assert len(report.result.float_groups) <= 2
    assert {effect.groups for effect in report.effects[:2]} == {("g2",), ("g7",)} or len(report.effects) < count


def test_a_graph_with_nan_output_is_repaired():
    def evaluate(floats: frozenset[str]) -> Measurement:
        return Measurement(0.0, 1.0, 0.001) if "bad" in floats else NO_NUMBERS

    groups = [Group(name, (name,), cost) for name, cost in (("bad", 80), ("fine", 10), ("good", 10))]
    report = control(groups, evaluate, LIMIT, FOREVER)
    assert report.passed and report.result.float_groups == ("bad",)


def test_labels_without_change_are_decided_by_agreement():
    report = Landscape(damage=named(6, g1=3), changed=False).control()
    assert report.passed and report.result.float_groups == ("g1",)
    assert report.result.measurement.f1_drop is None
    assert "pixels disagree by 0.005 points, within 0.5" in report.result.reason


def test_a_broken_graph_with_higher_f1_is_detected_by_agreement():
    """The agreement fails, but never F1: then only the logit error determines the order."""
    landscape = Landscape(damage=named(8, g5=2))

    def evaluate(floats: frozenset[str]) -> Measurement:
        return replace(landscape.evaluate(floats), f1_drop=-0.3)

    assert control(landscape.groups, evaluate, 0.1, FOREVER).stopped == "at the start"
    report = control(landscape.groups, evaluate, 0.1, FOREVER, min_agreement=0.999)
    assert report.passed and report.result.float_groups == ("g5",)
    assert report.limit == Limit(0.1, 0.999)


def test_groups_without_macs_are_not_float_without_need():
    report = Landscape(damage={"a": 0.0, "b": 1.0}, costs={"a": 0, "b": 0}).control()
    assert report.result.float_groups == ("b",)


FREE = {"norms": 0, "sums": 0, "q": 30, "mlp": 60, "conv": 10}


def test_reverting_groups_without_macs_can_end_the_search():
    landscape = Landscape(damage={"norms": 3, "sums": 9, "q": 0.1, "mlp": 0.1, "conv": 0.1}, costs=FREE)
    heard: list[float] = []
    report = landscape.control(listen=lambda _, left: heard.append(left))
    assert landscape.asked == [set(), set(FREE), {"norms", "sums"}]
    assert report.result.float_groups == ("norms", "sums") and report.result.int8_share == 1
    assert report.steps[-1].changed == ("norms", "sums") and heard[-1] == 0 < heard[0]


def test_groups_without_macs_stay_float_during_the_ranking():
    landscape = Landscape(damage={"norms": 3, "sums": 9, "q": 4, "mlp": 0.1, "conv": 0.1}, costs=FREE)
    report = landscape.control(ties=[("sums", "q"), ("norms", "mlp", "conv")])
    assert report.passed and report.result.float_groups == ("norms", "sums", "q")
    assert all(state >= {"norms", "sums"} for state in landscape.asked[1:])
    assert {name for effect in report.effects for name in effect.groups} <= {"q", "mlp", "conv"}
    assert [step.changed for step in report.steps if step.phase == "rank"] == [("conv",), ("q",)]


def test_ties_are_reduced_to_groups_that_are_not_float():
    pairs = {("q", "mlp"): 5.0}
    landscape = Landscape(damage={"norms": 3, "sums": 0, "q": 0, "mlp": 0, "conv": 0}, costs=FREE, pairs=pairs)
    report = landscape.control(ties=[("sums", "q"), ("norms", "q", "mlp")])
    assert report.effects[0].groups == ("q", "mlp")
    assert set(report.result.float_groups) == {"norms", "sums", "q", "mlp"}


def test_groups_without_macs_are_not_quantized_again():
    landscape = Landscape(damage={"norms": 3, "sums": 9, "q": 4, "mlp": 4, "conv": 0.1}, costs=FREE)
    regained = [step.changed for step in landscape.control().steps if step.phase == "regain"]
    assert all(set(names) <= {"q", "mlp", "conv"} for names in regained)


def test_groups_without_macs_that_help_in_int8_stay_quantized():
    """With the sums float the graph is worse, so they are ranked like groups with MACs."""
    landscape = Landscape(damage={"norms": 0, "sums": -2, "q": 4, "mlp": 0, "conv": 0}, costs=FREE)
    report = landscape.control(limit=0.1)
    assert report.passed and report.result.float_groups == ("q",)


def test_a_cheap_estimate_is_used_only_for_ranking():
    """According to the estimate any group is sufficient; the exact measurement disagrees."""
    landscape = Landscape(damage=named(20, g3=5, g11=5), costs={f"g{i}": 10 + i for i in range(20)})
    guessed: list[frozenset[str]] = []

    def estimate(floats: frozenset[str]) -> Measurement:
        guessed.append(floats)
        landscape.now += 0.25
        return Measurement(0.0, 1.0, landscape.points(floats) / 50)

    report = landscape.control(estimate=estimate)
    assert set(report.result.float_groups) == {"g3", "g11"} and report.result.accepted
    assert guessed == [set(), *({f"g{i}"} for i in range(20))], "the state that all are compared with, then each"
    ranked = [step for step in report.steps if step.phase == "rank"]
    assert len(ranked) == 21 and all(step.estimated and not step.accepted for step in ranked)
    assert not any(step.estimated for step in report.steps if step.phase != "rank")
    assert len(landscape.asked) <= 5, "start, all float, and the prefixes of the ranking"
    assert {step.number for step in report.steps} == set(range(1, len(report.steps) + 1))


@pytest.mark.parametrize("budget", range(2, 30, 3))
def test_time_reserved_for_reverting_counts_exact_measurements(budget: int):
    landscape = Landscape(damage=named(40, g30=9, g31=9), costs={f"g{i}": 10 + i for i in range(40)})

    def estimate(floats: frozenset[str]) -> Measurement:
        landscape.now += 0.1
        return Measurement(landscape.points(floats), 0.9, landscape.points(floats) / 100)

    report = landscape.control(budget=budget, estimate=estimate)
    assert report.passed and report.seconds <= budget + 1
    assert report.result.int8_share > 0 or budget < 17


def test_groups_without_macs_are_only_counted_if_all_are_float():
    found = groups(a=0, b=0, c=0, d=0, e=5, f=6)
    assert listed(["a", "b", "c", "d", "f"], found) == "all 4 unweighted groups, f"
    assert listed(["a", "b", "c", "f"], found) == "a, b, c, f" and listed([], found) == "nothing"
    assert listed(["a", "f"], groups(a=0, f=6)) == "a, f"


DAMAGES = st.lists(
    st.tuples(st.sampled_from([0.0, 0.01, 0.2, 0.5, 1.0, 7.0]), st.integers(1, 50)), min_size=1, max_size=6
)


@settings(max_examples=80, deadline=None)
@given(DAMAGES, st.sampled_from([0.0, 0.3, 1.0]), st.data())
def test_on_any_monotonic_landscape_no_group_is_float_without_need(parts, limit, data):
    names = [f"g{i}" for i in range(len(parts))]
    pairs = data.draw(st.dictionaries(st.tuples(*[st.sampled_from(names)] * 2), st.sampled_from([0.4, 3.0])))
    damage = {name: points for name, (points, _) in zip(names, parts, strict=True)}
    landscape = Landscape(
        damage=damage, costs={n: cost for n, (_, cost) in zip(names, parts, strict=True)}, pairs=pairs
    )
    report = landscape.control(limit)
    kept = frozenset(report.result.float_groups)
    assert report.passed and landscape.points(kept) <= limit
    assert all(landscape.points(kept - {name}) > limit for name in kept)
    assert float_cost(report) >= optimum(landscape, limit)
    assert len(landscape.asked) == len(set(landscape.asked)), "nothing is measured twice"
    for earlier, later in combinations(report.steps, 2):
        presumed = later.phase == "regain" and set(later.float_groups) < set(earlier.float_groups)
        assert earlier.accepted or not presumed, "nothing is quantized again where less of it failed"


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 50), min_size=1, max_size=7), st.data())
def test_the_optimum_is_found_if_one_group_suffices(costs, data):
    broken = data.draw(st.integers(0, len(costs) - 1))
    names = named(len(costs), **{f"g{broken}": 30.0})
    landscape = Landscape(damage=names, costs={f"g{i}": cost for i, cost in enumerate(costs)})
    assert float_cost(landscape.control()) == optimum(landscape, LIMIT)


# The budget


def hard() -> Landscape:
    return Landscape(
        damage=named(12, g1=4, g5=2, g9=2), costs={f"g{i}": 10 + i for i in range(12)}, pairs={("g2", "g3"): 3.0}
    )


@pytest.mark.parametrize("budget", range(40))
def test_no_evaluation_starts_after_the_budget(budget: int):
    landscape = hard()
    whole = len(hard().control().steps)
    report = landscape.control(budget=budget)
    assert len(report.steps) == len(landscape.asked) <= max(1, budget)
    assert report.stopped == ("budget" if budget < whole else "finished")
    assert report.result.accepted is any(s.accepted for s in report.steps) is (budget >= 2)
    if report.passed:
        assert report.result.int8_share == max(s.int8_share for s in report.steps if s.accepted)


def test_more_time_never_gives_a_worse_result():
    shares = [hard().control(budget=budget).result.int8_share for budget in (2, 8, 20, 100)]
    assert shares == sorted(shares) and shares[0] == 0 < shares[-1]


@settings(max_examples=80, deadline=None)
@given(st.lists(st.floats(0.01, 20), min_size=40, max_size=40), st.floats(0, 200))
def test_the_budget_is_exceeded_by_at_most_one_evaluation(durations, budget):
    landscape = hard()
    landscape.now = -1000.0  # a monotonic clock may start at any value
    landscape.duration = lambda number: durations[number % 40]
    report = landscape.control(budget=budget)
    assert report.seconds == landscape.now + 1000
    assert not report.steps[1:] or report.steps[-2].seconds < budget
    assert report.seconds <= budget + max(durations) + 1e-9


def test_the_ranking_leaves_time_to_revert():
    landscape = Landscape(damage=named(40, g30=9, g31=9), costs={f"g{i}": 10 + i for i in range(40)})
    report = landscape.control(budget=25)
    phases = [s.phase for s in report.steps]
    assert phases.count("rank") < 40 and phases.count("revert") >= 3
    assert report.passed and report.result.int8_share > 0


# The log


def test_every_evaluation_is_recorded_as_a_step():
    landscape = hard()
    heard: list[tuple[Step, float]] = []
    report = landscape.control(budget=500, total_macs=400, listen=lambda *event: heard.append(event))
    assert [s.number for s in report.steps] == list(range(1, len(landscape.asked) + 1))
    assert [frozenset(s.float_groups) for s in report.steps] == landscape.asked
    assert [s.seconds for s in report.steps] == [float(s.number) for s in report.steps]
    assert [step for step, _ in heard] == list(report.steps)
    order = ["start", "revert", "rank", "revert", "regain"]
    assert list(dict.fromkeys(s.phase for s in report.steps[2:])) == order[2:]
    assert [s.phase for s in report.steps[:2]] == order[:2]
    for step in report.steps:
        quantized = sum(g.multiply_adds for g in report.groups if g.name not in step.float_groups)
        assert step.int8_share == quantized / 400
        assert step.accepted is passes(step.measurement, Limit(LIMIT))
        assert f"{loss(step.measurement):.3f} points" in step.reason and ("within" in step.reason) is step.accepted
        assert step.phase == "start" or step.changed
    assert all(0 <= left <= 500 - step.seconds for step, left in heard)
    assert heard[5][1] > heard[14][1] > 0, "the time left shrinks"


def test_a_passing_start_has_no_time_left():
    heard: list[float] = []
    Landscape(damage=named(3)).control(listen=lambda _, left: heard.append(left))
    assert heard == [0.0]


def test_the_same_measurements_give_the_same_path():
    first, second = (Landscape(damage=named(25, g3=3, g9=2), noise=0.2).control() for _ in range(2))
    assert first == second and len(first.steps) > 10


def test_ties_are_decided_by_the_order_of_the_groups():
    report = Landscape(damage=dict.fromkeys("dcba", 1.0)).control(limit=2)
    assert report.result.float_groups == ("d", "c")


@pytest.mark.parametrize(
    ("limit", "budget", "options", "message"),
    [
        (math.nan, 1, {}, "points"), (math.inf, 1, {}, "points"), (0.1, -1, {}, "seconds"),
        (0.1, math.nan, {}, "seconds"), (0.1, 1, {"total_macs": 5}, "MACs"),
        (0.1, 1, {"min_agreement": 99.9}, "agreement"), (0.1, 1, {"min_agreement": math.nan}, "agreement"),
    ],
)  # fmt: skip
def test_invalid_arguments_are_refused(limit, budget, options, message):
    with pytest.raises(InputError, match=message):
        Landscape(damage=named(3)).control(limit, budget, **options)


def test_equal_names_are_refused():
    with pytest.raises(InputError, match="two groups named 'a'"):
        control([Group("a", (), 1), Group("a", (), 1)], lambda _: NO_NUMBERS, 0.1, 1)


def test_exceptions_of_an_evaluation_propagate():
    def evaluate(_: frozenset[str]) -> Measurement:
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="disk"):
        control([Group("a", (), 1)], evaluate, 0.1, 1)


# The decisions


@pytest.mark.parametrize("numbers", [(math.nan, 1.0, 0.0), (0.1, math.nan, 0.0), (0.1, 1.1, 0.0), (0.1, 1, math.nan)])
def test_nan_in_a_measurement_is_refused(numbers):
    with pytest.raises(ValueError, match="NO_NUMBERS"):
        Measurement(*numbers)


@given(st.integers(1, 10**6), st.data(), st.floats(0, 50))
def test_without_change_the_decision_equals_the_gates(pixels, data, limit):
    before, after = (data.draw(st.integers(0, pixels)) for _ in range(2))
    differing = data.draw(st.integers(abs(after - before), min(before + after, 2 * pixels - before - after)))
    agreement = 1 - differing / pixels
    allowed = F1Limit(max_f1_drop=limit)
    verdict = decide(
        Confusion(fp=before, tn=pixels - before), Confusion(fp=after, tn=pixels - after), agreement, allowed
    )
    found = Measurement(None, max(0.0, agreement), 0.0)
    assert passes(found, Limit(limit)) is verdict.passed
    assert loss(found) == pytest.approx(verdict.value)


def test_prefixes_grow_and_skip_groups_that_are_float_already():
    effects = [Effect(names, None, None, 0, 0) for names in (("a", "b"), ("a",), ("c",), ("b", "c"), ("d",))]
    assert prefixes(effects) == [frozenset("ab"), frozenset("abc"), frozenset("abcd")]
    assert prefixes([]) == []


@given(st.integers(1, 300), st.data(), st.booleans())
def test_doubling_and_halving_finds_the_boundary(count, data, known):
    """Finds the first prefix that passes, or that none does, in about 2 log2 of its length measurements."""
    first = data.draw(st.integers(1, count if known else count + 1))
    failed, passed, asked = 0, count if known else count + 1, 0
    while (probe := next_prefix(failed, passed)) is not None:
        assert failed < probe < passed
        failed, passed, asked = (failed, probe, asked + 1) if probe >= first else (probe, passed, asked + 1)
    assert passed == first
    assert asked <= 2 * first.bit_length()


def alone(points: Mapping[str, float], errors: Mapping[str, float], start: Measurement) -> dict:
    """Returns the measurements with each group reverted alone, which gains ``points`` and ``errors``."""
    return {(n,): Measurement(start.f1_drop - points[n], 0.9, start.logit_error - errors[n]) for n in points}


START = Measurement(10.0, 0.9, 0.1)
FLOAT = Measurement(0.0, 1.0, 0.0)


def groups(**costs: int) -> list[Group]:
    return [Group(name, (name,), cost) for name, cost in costs.items()]


def test_the_logit_error_decides_if_f1_only_fluctuates():
    points = {"a": 0.2, "b": -0.2, "c": 0.1, "d": 0.0, "e": -0.1}
    errors = {"a": 0.001, "b": 0.03, "c": 0.002, "d": 0.02, "e": 0.0}
    effects = rank(groups(a=1, b=1, c=1, d=1, e=1), START, FLOAT, alone(points, errors, START), Limit(0.1))
    assert [name for e in effects for name in e.groups][:2] == ["b", "d"]


def test_a_fluctuation_as_large_as_the_excess_does_not_decide():
    start = Measurement(0.6, 0.99, 0.1)
    points = {"a": 0.2, "b": -0.2, "c": 0.1, "d": 0.0, "e": -0.1}
    errors = {"a": 0.001, "b": 0.02, "c": 0.001, "d": 0.001, "e": 0.001}
    effects = rank(groups(a=1, b=1, c=1, d=1, e=1), start, FLOAT, alone(points, errors, start), Limit(0.3))
    assert effects[0].groups == ("b",)


def test_f1_decides_if_it_exceeds_the_fluctuation():
    points = {"a": 6.0, "b": -0.1, "c": 0.1, "d": 0.0, "e": 0.05}
    errors = dict.fromkeys(points, 0.01) | {"b": 0.02}
    effects = rank(groups(a=1, b=1, c=1, d=1, e=1), START, FLOAT, alone(points, errors, START), Limit(0.1))
    assert effects[0].groups == ("a",) and effects[0].points == pytest.approx(6)
    assert effects[0].benefit == pytest.approx((0.59 + 0.1) / 2, abs=0.01)


def test_the_cheaper_of_equal_benefits_is_first_but_cost_does_not_decide_alone():
    points = {"dear": 3.0, "cheap": 3.0, "nothing": 0.01}
    errors = {"dear": 0.03, "cheap": 0.03, "nothing": 0.0001}
    effects = rank(groups(dear=90, cheap=10, nothing=0), START, FLOAT, alone(points, errors, START), Limit(0.1))
    assert [name for e in effects for name in e.groups] == ["cheap", "dear", "nothing"]


def test_harmful_groups_come_last_and_groups_that_pass_alone_first():
    points = {"harms": -5.0, "none": 0.0, "cures": 9.95, "most": 9.0}
    errors = {"harms": -0.02, "none": 0.0, "cures": 0.01, "most": 0.09}
    effects = rank(groups(harms=1, none=1, cures=90, most=1), START, FLOAT, alone(points, errors, START), Limit(0.1))
    assert [name for e in effects for name in e.groups] == ["cures", "most", "none", "harms"]


def test_unranked_groups_share_the_unexplained_gain():
    found = alone({"a": 1.0, "b": 0.0}, {"a": 0.01, "b": 0.0}, START)
    effects = {e.groups[0]: e for e in rank(groups(a=1, b=1, c=1, d=1), START, FLOAT, found, Limit(0.1))}
    assert effects["c"].benefit == effects["d"].benefit > effects["a"].benefit > effects["b"].benefit
    assert effects["c"].points is None and effects["c"].error is None
    assert [e.groups for e in rank(groups(a=9, b=1), START, None, {}, Limit(0.1))] == [("b",), ("a",)]


def step(number: int, share: float, drop: float, error: float = 0.0, accepted: bool = True) -> Step:
    return Step(
        number=number,
        phase="revert",
        changed=(),
        float_groups=(),
        measurement=Measurement(drop, 0.9, error),
        int8_share=share,
        seconds=0.0,
        accepted=accepted,
        reason="",
    )


def test_the_best_step_is_the_fastest_that_passed():
    steps = [step(1, 0.9, 0.4), step(2, 0.95, 0.5), step(3, 0.95, 0.3), step(4, 1.0, 2.0, accepted=False)]
    assert best(steps) == steps[2]
    assert best([*steps, step(5, 0.95, 0.3, error=0.1)]) == steps[2]
    assert best(steps[3:]) is None
    assert closest([step(1, 1.0, 3.0), step(2, 0.5, 2.0, 0.2), step(3, 0.4, 2.0, 0.1)], Limit(0.1)).number == 3


def test_the_excess_is_the_worse_of_points_and_pixels():
    found = Measurement(-0.7, 0.996, 0.01)
    assert excess(found, Limit(0.1)) == pytest.approx(-0.8) and passes(found, Limit(0.1))
    assert excess(found, Limit(0.1, 0.999)) == 0.3 and not passes(found, Limit(0.1, 0.999))
    assert excess(Measurement(0.6, 0.999, 0.01), Limit(0.1, 0.999)) == 0.5
    assert passes(Measurement(0.1, 0.999, 0.01), Limit(0.1, 0.999)), "equal to both limits passes"
    assert reason(found, Limit(0.1, 0.999)) == "F1 drop -0.700 points, within 0.1, but only 99.600 % of pixels agree"
    assert closest([step(1, 1.0, -0.7), replace(step(2, 1.0, 0.2), measurement=Measurement(0.2, 0.9985, 0))],
                   Limit(0.1, 0.999)).number == 2  # fmt: skip


def test_fewer_float_groups_than_a_failure_are_presumed_to_fail():
    failures = [frozenset("abc")]
    assert presumed_failed(frozenset("ab"), failures) and presumed_failed(frozenset("abc"), failures)
    assert not presumed_failed(frozenset("ad"), failures) and not presumed_failed(frozenset(), [])


def test_the_budget_bounds_the_time_left():
    assert (seconds_left(2, 10, 100), seconds_left(2, 10, 5), seconds_left(2, 10, -3)) == (20, 5, 0)


# The groups

NODES = {  # names as written by the export: stage, block, module
    "backbone.block1.0.attn.q/MatMul_21": ("backbone.block1", "backbone.block1.0", "backbone.block1.0.attn"),
    "backbone.block3.1.mlp.fc2/MatMul_271": ("backbone.block3", "backbone.block3.1", "backbone.block3.1.mlp"),
    "backbone.patch_embed2.proj/Conv_99": ("backbone.patch_embed2",) * 3,
    "MGLNet0.mutualnet0.r2e2.conv.0.conv/Conv_394": ("MGLNet0",) * 3,
    "decode1.conv3/Conv_815": ("decode1",) * 3,
    "Translayer1.conv/Conv_805": ("Translayer1",) * 3,
    "final2.0.conv/Conv_841": ("final2",) * 3,
    "/Conv_7": ("/Conv_7",) * 3,
    "backbone.block1.0/Add_42": ("backbone.block1", "backbone.block1.0", "backbone.block1.0"),
}


@pytest.mark.parametrize("node", NODES)
def test_a_group_is_a_module_of_the_network(node: str):
    assert tuple(group_name(node, depth) for depth in ("stage", "block", "module")) == NODES[node]
    assert group_name(node, "operator") == node


def test_groups_contain_every_site_once_with_its_macs():
    graph = Graph(two_branch())
    sites = quantizer_sites(graph, CPU)
    found = groups_of(graph, sites, "module")
    assert [group.name for group in found] == ["backbone.block", "MGLNet0", "decode"]
    assert [len(group.nodes) for group in found] == [3, 1, 2]
    assert [node for group in found for node in group.nodes] == [p.node for p in sites]
    total = sum(map(graph.macs, graph.nodes))
    assert sum(g.multiply_adds for g in found) / total == pytest.approx(int8_share(graph, sites))
    assert len(groups_of(graph, sites, "operator")) == len(sites)


def test_operators_without_weights_form_separate_groups():
    graph = Graph(two_branch())
    sites = quantizer_sites(graph, replace(CPU, rules=EVERYTHING_RULES))
    found = {group.name: group for group in groups_of(graph, sites, "module")}
    assert found.keys() == {
        "backbone.block", "backbone.block (unweighted)", "MGLNet0", "MGLNet0 (unweighted)", "decode",
        "decode (unweighted)", "head (unweighted)",
    }  # fmt: skip
    assert found["decode (unweighted)"].nodes == ("decode/Add_decoder_sum", "decode/ReduceMean_decoder_mean")
    assert all((group.multiply_adds == 0) is ("unweighted" in name) for name, group in found.items())
    tied = ties_of(tuple(found.values()), sites)
    assert ("MGLNet0 (unweighted)", "decode") in tied, "both read the difference"


def test_groups_are_tied_by_the_activations_they_share():
    text = """g (float[batch,16,8,8] x) => (float[batch,16,8,8] y) {
        a_out = Conv (x, w)  b_out = Conv (a_out, w)  c_out = Conv (a_out, w)
        d_sum = Add (b_out, c_out)  y = Relu (d_sum)
    }"""
    graph = Graph(parsed(text, {"w": np.ones((16, 16, 1, 1), np.float32)}))
    cpu, rtx = quantizer_sites(graph, CPU), quantizer_sites(graph, RTX)
    assert ties_of(groups_of(graph, cpu, "module"), cpu) == (("a", "b", "c"),)  # a ends in INT8, which b and c read
    assert ties_of(groups_of(graph, rtx, "module"), rtx) == (("b", "c"),)
    assert ties_of(groups_of(graph, cpu, "stage")[:1], cpu[:1]) == ()


# A real graph in a real engine


def predictions(model: onnx.ModelProto) -> np.ndarray:
    before, after = images(8, seed=1)
    engine = OnnxRuntimeEngine(model.SerializeToString(), max_batch=8)
    try:
        return engine.infer({"before": before, "after": after})["probability"]
    finally:
        engine.close()


def observed(model: onnx.ModelProto, names: list[str]) -> dict[str, Range]:
    before, after = images(8, seed=0)
    exposed = onnx.ModelProto()
    exposed.CopyFrom(model)
    exposed.graph.output.extend(onnx.helper.make_tensor_value_info(name, 1, None) for name in names)
    engine = OnnxRuntimeEngine(exposed.SerializeToString(), max_batch=8)
    values = engine.infer({"before": before, "after": after})
    engine.close()
    ranges = {}
    for name in names:
        histogram = Histogram()
        histogram.observe(values[name])
        ranges[name] = histogram.percentile(1.0)
    return ranges


LIMIT_REAL = 2.0  # points; a random network on noise loses 1.3 with no broken range


class Quantizer:
    """Quantizes ``two_branch`` with one activation's range enlarged, as by a broken observer.

    The labels are the float graph's own masks, so that its F1 is 1.
    """

    def __init__(self, recipe: Recipe, broken: str) -> None:
        self.model, self.recipe = two_branch(), recipe
        self.graph = Graph(self.model)
        self.sites = quantizer_sites(self.graph, recipe)
        self.ranges = observed(self.model, activations(self.sites))
        wide = self.ranges[broken]
        self.ranges[broken] = Range(50 * wide.low, 50 * wide.high)
        self.expected = predictions(self.model)
        self.labels = self.expected > np.median(self.expected)

    def evaluate(self, floats: frozenset[str]) -> Measurement:
        found = predictions(quantize(self.model, self.recipe, self.ranges, {}, keep_float=floats).model)
        masks = found > np.median(self.expected)
        drop = f1_drop(Confusion.of(self.labels, self.labels), Confusion.of(masks, self.labels))
        return Measurement(drop, float((masks == self.labels).mean()), float(np.abs(found - self.expected).mean()))


@pytest.mark.parametrize("recipe", [CPU, TENSORRT], ids=lambda recipe: recipe.name)
@pytest.mark.parametrize(
    ("broken", "reader"),
    [
        ("encoder_stem_relu", "backbone.block/Conv_encoder_conv"),
        ("encoder_norm", "backbone.block/MatMul_encoder_product"),
        ("encoder_gelu", "backbone.block/MatMul_encoder_second"),
        ("guide_unit", "MGLNet0/MatMul_guide_out"),
        ("guide_difference", "decode/MatMul_decoder_one"),
        ("guide_out", "decode/MatMul_decoder_two"),
    ],
)
def test_control_reverts_exactly_the_broken_operator_of_a_real_graph(recipe: Recipe, broken: str, reader: str):
    quantizer = Quantizer(recipe, broken)
    found = groups_of(quantizer.graph, quantizer.sites, "operator")
    report = control(found, quantizer.evaluate, limit=LIMIT_REAL, budget_seconds=60)
    assert report.steps[0].measurement.f1_drop > 1.5 * LIMIT_REAL, "the start must be bad"
    assert report.passed and report.float_nodes == {reader}
    assert report.result.measurement.f1_drop <= LIMIT_REAL
    assert report.effects[0].groups == (reader,)


# The report


def record() -> ControlRecord:
    return record_of(hard().control(budget=300))


def test_the_report_shows_repairs_and_the_whole_path() -> None:
    pytest.importorskip("matplotlib")
    found = record()
    repair = RepairEntry("rounding", True, "57 of <57> weights", 0.9995, 0.9997, 5e-4, 3e-4, 12.0)
    evaluated = report_of([parity([0, 1, 0, 0])])
    page = Page(render(data_of(evaluated, repairs={"cpu": [repair]}, controls={"cpu": found})))
    for words in ("Measures to keep F1", "57 of <57> weights", "5.00e-04 3.00e-04", summary(found)):
        assert " ".join(words.split()) in page.text
    assert [attributes.get("class") for tag, attributes in page.tags if tag == "img"].count("plot") == 1
    for row in step_rows(found):
        assert " ".join(" ".join(row).split()) in page.text
    assert "keep F1" not in Page(render(data_of(evaluated))).text


def shown(found: ControlRecord, width: int = 80) -> str:
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(control_table(found))
    return console.file.getvalue()


def test_the_record_survives_json():
    found = record()
    again = msgspec.json.decode(encode(found), type=ControlRecord)
    assert again == found
    assert again.chosen.accepted and again.passed
    assert set(again.chosen.float_groups) == set(hard().control().result.float_groups)
    scores = [effect.score for effect in again.ranking]
    assert scores == sorted(scores, reverse=True)
    assert again.ranking[0].groups == ["g1"] and again.ranking[0].won_points == pytest.approx(4)


def test_values_that_are_not_finite_are_null_in_json():
    def evaluate(floats: frozenset[str]) -> Measurement:
        return FLOAT if "a" in floats else NO_NUMBERS

    found = record_of(control(groups(a=3, b=1), evaluate, 0.1, math.inf))
    assert found.budget_seconds is None
    assert (found.steps[0].loss_points, found.steps[0].logit_error) == (None, None)
    assert found.ranking[0].groups == ["a"] and found.ranking[0].won_points is None
    assert msgspec.json.decode(encode(found), type=ControlRecord) == found
    assert "n/a" in shown(found)


def test_a_search_without_ranking_still_names_its_groups():
    found = record_of(Landscape(damage=named(3)).control())
    assert [g.name for g in found.groups] == ["g0", "g1", "g2"] and found.ranking == []
    assert found.groups[0].nodes == ["g0/MatMul"] and found.groups[0].multiply_adds == 10
    assert "the fully quantized graph is within the limit" in summary(found)


def test_the_table_shows_every_step_in_80_columns():
    found = record()
    text = shown(found)
    assert "pixels equal" not in text
    assert "99.900" in shown(msgspec.structs.replace(found, min_agreement=0.999))
    lines = text.splitlines()
    assert max(map(len, lines)) <= 80
    rows = [line.split() for line in lines if line[:2].strip().isdigit()]  # continued cells are indented
    assert [row[:2] for row in rows] == [[str(s.number), s.phase] for s in found.steps]
    assert [row[-1] == "pass" for row in rows] == [s.accepted for s in found.steps]
    assert "all INT8" in text and "all float" in text and "+ g" in text
    assert "Reverted to float: g1, g2, g3, g5" in " ".join(text.split())


def test_the_table_marks_estimates_and_counts_groups_without_macs():
    costs = {"n1": 0, "n2": 0, "n3": 0, "n4": 0, "q": 30, "mlp": 60}
    landscape = Landscape(damage=dict.fromkeys(costs, 1.0), costs=costs)
    found = record_of(landscape.control(limit=1.5, estimate=landscape.evaluate))
    text = " ".join(shown(found, 120).split())
    assert "3 revert all unweighted" in text and "4 rank none of the others" in text
    assert "Reverted to float: all 4 unweighted groups, q, which takes 33.3 % of the MACs out of INT8. 4 eval" in text
    assert "4 evaluations and 3 estimates on fewer tiles (~)" in text
    assert [step.estimated for step in found.steps] == [False] * 3 + [True] * 3 + [False]
    again = msgspec.json.decode(encode(found).replace(b'"estimated": true', b'"estimated": false'), type=ControlRecord)
    assert not any(step.estimated for step in again.steps)


def test_names_are_not_interpreted_as_markup():
    report = control([Group("[red]x[/]", ("n",), 1)], lambda f: FLOAT if f else START, 0.1, 9)
    assert "[red]x[/]" in shown(record_of(report), 200)


def test_the_caption_states_what_reverting_cost():
    report = hard().control(budget=300)
    assert "of the MACs out of INT8 (0.80 times the speed in openvino)." in summary(
        record_of(report, ControlSpeed("openvino", 0.8))
    )
    assert "times the speed" not in summary(record_of(report))


def test_the_caption_states_that_no_step_passed():
    text = summary(record_of(Landscape(damage=named(4, g1=3), rest=2).control()))
    assert "is the closest; none passed" in text and "the cause is elsewhere" in text


@pytest.mark.parametrize(
    "make", [record, lambda: record_of(Landscape(damage=named(3)).control())], ids=["path", "one step"]
)
def test_the_plot_is_written_as_png_and_svg_and_is_reproducible(tmp_path: Path, make):
    pytest.importorskip("matplotlib")
    first, second = tmp_path / "a", tmp_path / "b"
    for folder in (first, second):
        folder.mkdir()
        written = draw_control(make(), folder)
        assert [path.name for path in written] == ["control.png", "control.svg"]
    assert [p.read_bytes() for p in sorted(first.iterdir())] == [p.read_bytes() for p in sorted(second.iterdir())]
    with Image.open(first / "control.png") as picture:
        assert picture.size == (1080, 720)
    text = "".join(ElementTree.parse(first / "control.svg").getroot().itertext())
    assert all(word in text for word in ("points lost", "INT8, % of", "start", "limit", "result"))
    assert "pixels that differ" not in text
    draw_control(msgspec.structs.replace(make(), min_agreement=0.999), tmp_path, "both")
    assert "pixels that differ, %" in (tmp_path / "both.svg").read_text()


def test_steps_without_numbers_are_drawn_as_gaps(tmp_path: Path):
    pytest.importorskip("matplotlib")
    found = record_of(control(groups(a=3, b=1), lambda f: FLOAT if "a" in f else NO_NUMBERS, 0.1, 9))
    assert all(path.stat().st_size > 1000 for path in draw_control(found, tmp_path))
