"""What a bucket that does not answer, spot losses and processes that die again and again do to a sweep: the first two, nothing."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import ray
import torch
from patience import PATIENCE_S
from ray.util.placement_group import PlacementGroup, placement_group, placement_group_table

from sweep.engines import job, training, trials
from sweep.engines.cluster import Workers, connected
from sweep.engines.job import attempt, through_outages
from sweep.store.artifacts import Store
from sweep.store.files import UnreachableError

KEY = "ab" * 20


class Written:
    """Work that writes a file."""

    key, name, kind = KEY, "a file", "written"
    size, num_workers, unit = 1.0, 1, "files"

    def publish(self, store: Store, wait: bool = True, on_begin=None):
        return store.get_or_compute(self.key, stage=self.kind, params={}, inputs=[], compute=self.compute, wait=wait)

    def compute(self, directory: Path) -> dict[str, Any]:
        (directory / "a").write_text("x")
        return {}


class Looked(Written):
    """Looks round in its fit, of which it is the only work: whether torch has joined its worker, and whether a controller has torch."""

    def compute(self, directory: Path) -> dict[str, Any]:
        beside = psutil.Process().parent().children()
        controllers = [process for process in beside if "TrainController" in " ".join(process.cmdline())]
        has_torch = [any("libtorch" in mapped.path for mapped in process.memory_maps()) for process in controllers]
        return {**super().compute(directory), "is_joined": torch.distributed.is_initialized(), "controllers_have_torch": has_torch}


@pytest.fixture(scope="module")
def module_patch() -> Iterator[pytest.MonkeyPatch]:
    with pytest.MonkeyPatch.context() as patch:
        yield patch


@pytest.fixture(scope="module")
def server(module_patch) -> Iterator[SimpleNamespace]:
    """A stand-in for S3 that can be stopped and started again: buckets and what is in them outlive it. Tests leave it started."""
    moto_server = pytest.importorskip("moto.server", reason="moto is a test dependency")
    boto3 = pytest.importorskip("boto3", reason="boto3 is a test dependency")
    module_patch.setenv("AWS_ACCESS_KEY_ID", "test")
    module_patch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    module_patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    running = moto_server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    running.start()
    host, port = running.get_host_and_port()
    module_patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    boto3.client("s3").create_bucket(Bucket="outages")
    s3fs = pytest.importorskip("s3fs").S3FileSystem
    s3fs.clear_instance_cache()
    module_patch.setattr(s3fs, "retries", 1)  # its own and its client's take ten seconds a call
    module_patch.setenv("AWS_MAX_ATTEMPTS", "1")

    def start() -> None:
        nonlocal running
        running = moto_server.ThreadedMotoServer(ip_address="127.0.0.1", port=port, verbose=False)
        running.start()

    def stop() -> None:
        running.stop()
        running._server.server_close()  # or the port would go on taking connections

    yield SimpleNamespace(stop=stop, start=start)
    stop()


def test_work_goes_on_when_the_bucket_answers_again_and_fails_after_a_while(server, tmp_path, monkeypatch, caplog):
    store = Store(f"s3://outages/{tmp_path.name}", str(tmp_path / "cache"))
    server.stop()
    for call in (lambda: store.exists(KEY), lambda: store.is_claimed(KEY), lambda: Written().publish(store)):
        with pytest.raises(UnreachableError, match="cannot be reached"):
            call()
    monkeypatch.setattr(job, "OUTAGE_S", 0.5)
    assert isinstance(attempt(Written(), store).error, UnreachableError)
    monkeypatch.setattr(job, "OUTAGE_S", 600.0)
    threading.Timer(3.0, server.start).start()
    outcome = attempt(Written(), store)
    assert outcome.error is None and store.exists(KEY)
    assert "tried again in" in caplog.text


class Stopping:
    """Stops the server at the first call of what it stands before, and starts it again as soon as that has failed."""

    def __init__(self, server: SimpleNamespace, begin: Callable[..., Any], has_failed: Callable[[Any], bool]) -> None:
        self.server, self.begin, self.has_failed, self.num_calls = server, begin, has_failed, 0

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        self.num_calls += 1
        if self.num_calls > 1:
            return self.begin(*arguments, **named)
        self.server.stop()
        try:
            begun = self.begin(*arguments, **named)
            deadline = time.monotonic() + PATIENCE_S
            while not self.has_failed(begun):
                assert time.monotonic() < deadline
                time.sleep(0.2)
            return begun
        finally:
            self.server.start()


@pytest.fixture(scope="module")
def workers(server, module_patch) -> Iterator[Workers]:
    """One worker, which finds this file and the bucket."""
    module_patch.setenv("PYTHONPATH", str(Path(__file__).parent))
    with connected("local", "cpu", 1) as found:
        yield found


def test_a_fit_whose_own_files_are_in_that_bucket_is_lost_and_begun_again(server, tmp_path, monkeypatch, workers):
    """Ray's controller of the fit dies of it."""
    monkeypatch.setattr(training, "WAIT_S", 1.0)
    begin = Stopping(server, training._Fit, lambda fit: not fit.is_running)
    monkeypatch.setattr(training, "_Fit", begin)
    store, done = Store(f"s3://outages/{tmp_path.name}", str(tmp_path / "cache")), []
    training.run_trainings([Looked()], store, workers, done.append)
    assert begin.num_calls == 2 and [work.key for work in done] == [KEY] and store.exists(KEY)
    assert store.open(KEY).manifest["meta"] == {"is_joined": False, "controllers_have_torch": [False]}


def test_a_search_whose_own_files_are_in_that_bucket_is_begun_again(server, tmp_path, monkeypatch, workers):
    begin = Stopping(server, trials.tune.Tuner, lambda tuner: False)
    monkeypatch.setattr(trials.tune, "Tuner", begin)
    store, done = Store(f"s3://outages/{tmp_path.name}", str(tmp_path / "cache")), []
    trials.run_trials([Written()], store, workers, done.append)
    assert begin.num_calls == 2 and [work.key for work in done] == [KEY] and store.exists(KEY)


def test_what_several_compute_together_is_not_begun_again_by_one_of_them():
    """The others wait for what `on_begin` told them; a second time they would not listen."""
    begun: list[int] = []

    def publish(store: Store, wait: bool, on_begin) -> None:
        on_begin()
        raise UnreachableError("no answer")

    outcome = attempt(SimpleNamespace(publish=publish), Store("memory://together"), False, lambda: begun.append(1))
    assert isinstance(outcome.error, UnreachableError) and begun == [1]


def test_each_outage_has_its_time(monkeypatch):
    """What goes on for long and meets an outage now and then is begun again each time."""
    clock = SimpleNamespace(now=100.0)
    fake = SimpleNamespace(monotonic=lambda: clock.now, sleep=lambda seconds: setattr(clock, "now", clock.now + seconds))
    monkeypatch.setattr(job, "time", fake)
    calls = []

    def call(seconds: float, until: int) -> str:
        calls.append(clock.now)
        clock.now += seconds
        if len(calls) < until:
            raise UnreachableError("no answer")
        return "done"

    assert through_outages(lambda: call(3600.0, 8)) == "done"
    calls.clear()
    began = clock.now
    with pytest.raises(UnreachableError):
        through_outages(lambda: call(10.0, 1000))
    assert job.OUTAGE_S < clock.now - began < 1.2 * job.OUTAGE_S


def test_a_directory_that_cannot_be_used_is_said_at_once(tmp_path):
    """Nothing is waited for where a disk is concerned: that does not pass by itself."""
    (tmp_path / "store").mkdir()
    store = Store(str(tmp_path / "store"))
    (tmp_path / "store" / "leases").write_text("a file in the place of a directory")
    began = time.monotonic()
    error = attempt(Written(), store).error
    assert error is not None and not isinstance(error, UnreachableError)
    assert time.monotonic() - began < 5.0


class LostFit:
    """Stands in for a fit on spot machines that is lost after so many polls of the driver, each a second."""

    lives = 0
    begun = 0
    reason: Exception = RuntimeError("the node was taken back")
    is_together, num_workers = False, 1

    def __init__(self, num_workers: int, works: list, store: object, workers: Workers) -> None:
        type(self).begun += 1
        self.works, self.seconds = works, 0.0

    @property
    def is_running(self) -> bool:
        self.seconds += training.POLL_S
        return self.seconds < self.lives

    @property
    def outcome(self) -> training.Lost:
        return training.Lost(self.reason)


@pytest.mark.parametrize(("lives", "is_accident"), [(3600, True), (20, False)])
def test_losses_of_long_fits_never_end_a_sweep_and_quick_ones_do(monkeypatch, lives, is_accident):
    """Eight spot workers, lost all at once, again and again: each has trained for an hour and left its checkpoint, or dies at once."""
    num_workers, num_events = 8, 30
    fit = type("Fit", (LostFit,), {"lives": lives, "begun": 0})
    monkeypatch.setattr(training, "_Fit", fit)
    works = [SimpleNamespace(key=f"{i:040d}", name=str(i), size=1.0, num_workers=1) for i in range(10)]

    def existing(keys: object) -> set[str]:
        return {work.key for work in works} if fit.begun > num_workers * num_events else set()  # then they are done

    store = SimpleNamespace(existing=existing, is_claimed=lambda key: False)
    monkeypatch.setattr(training.time, "sleep", lambda seconds: None)
    trainings = training._Trainings(works, store, Workers(num_workers, 1.0, 1, 64, is_one_machine=False), lambda work: None)
    if is_accident:
        trainings.run()
    else:
        with pytest.raises(job.WorkLostError, match="trainings died, 80 times.*taken back.*--workers"):
            trainings.run()
        assert fit.begun < num_workers * num_events


def test_what_a_lost_fit_had_reserved_is_given_back_before_another_begins(workers, tmp_path, monkeypatch):
    """Where Ray's controller of a fit died. A machine's only GPU would stay reserved, and nothing begin any more."""
    reserved: list[PlacementGroup] = []

    class Fit(LostFit):
        reason = ray.exceptions.ActorDiedError()

        def __init__(self, num_workers: int, works: list, store: Store, workers: Workers) -> None:
            super().__init__(num_workers, works, store, workers)
            if reserved:
                assert placement_group_table(reserved[0])["state"] == "REMOVED"
                works[0].publish(store)
            else:
                reserved.append(placement_group([{"CPU": 1}]))
                ray.get(reserved[0].ready())

    monkeypatch.setattr(training, "_Fit", Fit)
    done: list[Any] = []
    training.run_trainings([Written()], Store(str(tmp_path / "store")), workers, done.append)
    assert Fit.begun == 2 and len(done) == 1


def test_a_lost_worker_is_told_with_what_it_computed(tmp_path: Path):
    error = job.WorkLostError.of("finetune cars", RuntimeError("out of memory"))
    assert "finetune cars" in str(error) and "--workers" in str(error) and "out of memory" in str(error)
