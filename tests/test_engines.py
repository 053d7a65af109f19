"""Engines: the same results in the same order wherever tasks run, and whatever happens to the workers."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import lipscope
from lipscope.engines import SERIAL, Engine, RayEngine, engine_named
from lipscope.errors import EngineError

WHY = "the engine of a Ray cluster needs the optional package ray"


# ---- tasks: functions of a module ------------------------------------------------------------------


def add(shared: int, item: int) -> int:
    return shared + item


def slowest_first(shared: int, item: int) -> int:
    time.sleep(0.3 if item == 0 else 0)
    return item


def threads(shared: None, item: int) -> int:
    return torch.get_num_threads()


def worker(shared: None, item: int) -> int:
    return os.getpid()


def stumble(shared: int, item: int) -> int:
    if item == shared:
        raise lipscope.DataError(f"sample {item} holds NaN")
    return item


def overflow(shared: None, item: int) -> int:
    raise ArithmeticError("not one of ours")


def note(shared: Path, item: int) -> int:
    (shared / str(item)).touch()
    return item


def die_once(shared: tuple[Path, int], item: int) -> int:
    """The first worker that takes the chosen item is killed in the middle of it."""
    folder, chosen = shared
    if item == chosen and not (folder / "died").exists():
        (folder / "died").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return item


def die_always(shared: None, item: int) -> int:
    os.kill(os.getpid(), signal.SIGKILL)
    return item


def dying(task: Callable[[Any, Any], Any], died: Path, shared: Any, item: Any) -> Any:
    """The task, but the first worker that takes it is killed."""
    if not died.exists():
        died.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return task(shared, item)


class Deadly:
    """An engine on which a worker is killed on the way, in each quantity that uses it."""

    def __init__(self, engine: Engine, folder: Path) -> None:
        self.engine, self.folder, self.killed = engine, folder, 0

    def map(self, task: Callable[[Any, Any], Any], shared: Any, items: Sequence[Any]) -> Iterator[Any]:
        self.killed += 1
        return self.engine.map(partial(dying, task, self.folder / str(self.killed)), shared, items)


def quantities(engine: Engine, graph: lipscope.Graph, samples: lipscope.Samples) -> list[Any]:
    """What every quantity over data finds on an engine, but for the time it took."""
    means = lipscope.mean_slopes(graph, samples, pairs=4000, engine=engine)
    whole = lipscope.mean_jacobian_norm(means, samples, "secant", pairs=600, engine=engine)
    moment, directions = lipscope.second_moment(graph, samples, "active", engine=engine)
    empirical, _ = lipscope.empirical(graph, samples, engine=engine)
    local, _ = lipscope.local(graph, samples, limit=100, engine=engine)
    found = [whole, moment, empirical, local, lipscope.mid_range(graph, samples, engine=engine)]
    state = {name: array.tolist() for name, array in means.sums.state().items()}
    return [state, directions.tolist(), *(f.model_dump(exclude={"cost"}) for f in found)]


@pytest.fixture(scope="module")
def problem() -> tuple[lipscope.Graph, lipscope.Samples]:
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(2, 6, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(54, 40), nn.GELU(), nn.Linear(40, 35)
    )  # fmt: skip
    return lipscope.from_torch(module, (2, 8, 8)), lipscope.load_samples(torch.randn(1500, 2, 8, 8))


# ---- always ----------------------------------------------------------------------------------------


def test_the_engine_here_is_lazy_and_ordered(tmp_path: Path) -> None:
    assert list(SERIAL.map(add, 10, range(4))) == [10, 11, 12, 13]
    results = SERIAL.map(note, tmp_path, range(4))
    assert [next(results), next(results)] == [0, 1]
    assert {p.name for p in tmp_path.iterdir()} == {"0", "1"}


def test_errors_of_a_task_come_as_they_are() -> None:
    results = SERIAL.map(stumble, 2, range(4))
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(lipscope.DataError, match=r"sample 2 holds NaN"):
        next(results)


def test_engines_by_name() -> None:
    with engine_named("local") as engine:
        assert engine is SERIAL
    with pytest.raises(ValueError, match=r"cloud.*local, ray"), engine_named("cloud"):
        pass


def test_without_ray_one_sentence_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(EngineError, match=r"not installed; run: pip install 'lipscope\[ray\]'"):
        RayEngine(2)
    with pytest.raises(lipscope.LipscopeError, match="not installed"), engine_named("ray"):
        pass


def test_ray_is_not_imported_before_it_is_asked_for() -> None:
    code = "import sys, lipscope.jobs.analysis, lipscope.engines; sys.exit('ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("wrong", [{"workers": 0}, {"threads": 0}])
def test_nothing_runs_on_no_worker(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="positive"):
        RayEngine(**wrong)


# ---- on a local cluster of two workers -------------------------------------------------------------


@pytest.fixture(scope="module")
def cluster() -> Iterator[RayEngine]:
    ray = pytest.importorskip("ray", reason=WHY)
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_ADDRESS", raising=False)
        with RayEngine(2) as engine:
            assert ray.is_initialized()
            yield engine
    assert not ray.is_initialized()


def test_results_come_in_order_from_several_workers(cluster: RayEngine) -> None:
    assert list(cluster.map(slowest_first, 0, range(40))) == list(range(40))
    assert list(cluster.map(add, 5, [])) == []
    here = os.getpid()
    assert here not in set(cluster.map(worker, None, range(10)))


def test_the_threads_of_this_process_are_shared_among_the_workers(cluster: RayEngine) -> None:
    assert set(cluster.map(threads, None, range(4))) == {max(1, torch.get_num_threads() // 2)}
    assert set(RayEngine(threads=3).map(threads, None, range(4))) == {3}


def test_all_quantities_are_those_of_one_process(cluster: RayEngine, problem) -> None:
    assert quantities(cluster, *problem) == quantities(SERIAL, *problem)


def test_workers_killed_on_the_way_change_nothing(cluster: RayEngine, problem, tmp_path: Path) -> None:
    deadly = Deadly(cluster, tmp_path)
    assert quantities(deadly, *problem) == quantities(SERIAL, *problem)
    assert len(list(tmp_path.iterdir())) == deadly.killed >= 6


def test_the_item_of_a_dead_worker_is_done_again_in_its_place(cluster: RayEngine, tmp_path: Path) -> None:
    assert list(cluster.map(die_once, (tmp_path, 17), range(40))) == list(range(40))
    assert (tmp_path / "died").exists()


def test_workers_that_keep_dying_are_one_sentence(cluster: RayEngine) -> None:
    with pytest.raises(EngineError, match=r"died 4 times on the same part of the data.*memory") as caught:
        list(cluster.map(die_always, None, range(2)))
    assert "\n" not in str(caught.value)


def test_errors_of_a_task_on_a_worker_come_as_they_are(cluster: RayEngine) -> None:
    results = cluster.map(stumble, 2, range(30))
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(lipscope.DataError) as caught:
        next(results)
    assert type(caught.value) is lipscope.DataError
    assert str(caught.value) == "sample 2 holds NaN"
    with pytest.raises(ArithmeticError, match=r"^not one of ours$"):
        list(cluster.map(overflow, None, range(2)))


def test_only_a_window_of_tasks_is_ahead(cluster: RayEngine, tmp_path: Path) -> None:
    results = cluster.map(note, tmp_path, range(100))
    assert [next(results) for _ in range(5)] == [0, 1, 2, 3, 4]
    time.sleep(0.5)
    assert len(list(tmp_path.iterdir())) <= 5 + 3 * 2
    results.close()
    time.sleep(0.5)
    assert len(list(tmp_path.iterdir())) <= 5 + 3 * 2


def test_a_worker_of_another_version_is_refused(cluster: RayEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lipscope.engines.ray.__version__", "0.0.0")
    with pytest.raises(EngineError, match=r"lipscope .*, this process 0\.0\.0"):
        list(cluster.map(add, 1, range(2)))


def test_a_cluster_of_the_process_is_used_and_left_running(cluster: RayEngine) -> None:
    import ray

    with engine_named("ray") as other:
        assert list(other.map(add, 1, range(3))) == [1, 2, 3]
    assert ray.is_initialized()


def test_tasks_that_can_never_run_are_refused(cluster: RayEngine) -> None:
    with engine_named("ray", device="cuda") as other, pytest.raises(EngineError, match="0 GPUs"):
        list(other.map(add, 1, range(3)))


def test_an_address_without_a_cluster_is_one_sentence() -> None:
    pytest.importorskip("ray", reason=WHY)
    code = (
        "import lipscope.engines as e\nfrom lipscope.errors import EngineError\n"
        "try: e.RayEngine(address='127.0.0.1:1')\n"
        "except EngineError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.startswith("the Ray cluster at 127.0.0.1:1 cannot be reached: "), done.stderr
    assert len(done.stdout.splitlines()) == 1
