"""Whether a fit of Ray Train was lost or its training raised: the one is begun again, the other is told."""

from __future__ import annotations

import ray.exceptions
from ray.train.v2._internal.exceptions import UserExceptionWithTraceback, WorkerHealthCheckFailedError

from sweep.engines.training import error_of_training

NAN = FloatingPointError("the loss is nan: lower the learning rate")
DEAD = WorkerHealthCheckFailedError("a worker died", ray.exceptions.RayActorError())


def test_an_error_of_the_training_is_told_as_it_was_raised():
    assert error_of_training({0: NAN}) is NAN
    assert error_of_training({0: UserExceptionWithTraceback(NAN, "")}) is NAN
    assert error_of_training({0: NAN, 1: NAN}) is NAN
    broken = RuntimeError("a bug")
    assert error_of_training({0: broken}) is broken


def test_a_dead_worker_is_a_loss():
    assert error_of_training({0: DEAD}) is None
    assert error_of_training({0: ray.exceptions.RayActorError()}) is None


def test_workers_that_fail_because_another_died_are_a_loss():
    closed = RuntimeError("[gloo] Connection closed by peer")
    assert error_of_training({0: DEAD, 1: closed}) is None
    assert error_of_training({0: closed, 1: closed}) is None


def test_an_error_of_one_worker_is_told_though_the_others_lost_it():
    assert error_of_training({0: NAN, 1: RuntimeError("[gloo] Connection closed by peer")}) is NAN
