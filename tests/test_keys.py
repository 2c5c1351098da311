"""Keys: a known function of everything an artifact depends on, and of nothing else."""

from __future__ import annotations

import json
import math
import random
from dataclasses import dataclass

import pytest

from sweep.store.artifacts import artifact_key


def test_keys_are_a_known_function_of_their_parts_and_blind_to_the_order_of_names():
    assert artifact_key("s", 1, {"a": 1, "b": [1, 2]}, []) == artifact_key("s", 1, {"b": (1, 2), "a": 1}, [])
    # Written down once: a change of the spelling would throw away every artifact there is.
    assert artifact_key("finetune", 1, {"alpha": 0.5}, ["x"]) == "732b5575201f279115d579881d49a9b412343557"


def test_every_part_changes_the_key():
    @dataclass
    class Settings:
        budget: int

    base = ("s", 1, {"x": 0.1, "d": Settings(5)}, ("i",))
    keys = {
        artifact_key(*base),
        artifact_key("t", *base[1:]),
        artifact_key("s", 2, *base[2:]),
        artifact_key("s", 1, {"x": 0.1000000001, "d": Settings(5)}, ("i",)),
        artifact_key("s", 1, {"x": 0.1, "d": Settings(6)}, ("i",)),
        artifact_key("s", 1, {"x": 0.1, "d": None}, ("i",)),
        artifact_key(*base[:3], ("j",)),
        artifact_key("s", 1, {"x": 1}, ()),
        artifact_key("s", 1, {"x": 1.0}, ()),
        artifact_key("s", 1, {"x": True}, ()),
    }
    assert len(keys) == 10


@pytest.mark.parametrize("value", [math.nan, math.inf, {1, 2}, object(), {1: 2}, b"bytes"])
def test_parameters_without_one_spelling_are_refused(value):
    with pytest.raises((TypeError, ValueError)):
        artifact_key("s", 1, {"x": value}, [])


def _random_params(rng: random.Random, depth: int = 3):
    if depth and rng.random() < 0.6:
        values = [_random_params(rng, depth - 1) for _ in range(rng.randint(1, 4))]
        return values if rng.random() < 0.4 else {f"n{rng.randrange(1000)}_{i}": v for i, v in enumerate(values)}
    return rng.choice([None, True, rng.randrange(-5, 5), rng.uniform(-1, 1), 10.0 ** rng.randint(-300, 300), rng.choice("aé\U0001f600")])


def _shuffled(rng: random.Random, value):
    """The same parameters, names in another order, sequences as tuples."""
    if isinstance(value, dict):
        return {k: _shuffled(rng, value[k]) for k in rng.sample(list(value), len(value))}
    return tuple(_shuffled(rng, v) for v in value) if isinstance(value, list) else value


def _with_one_leaf_changed(rng: random.Random, value):
    if isinstance(value, dict):
        name = rng.choice(list(value))
        return {**value, name: _with_one_leaf_changed(rng, value[name])}
    if isinstance(value, list):
        place = rng.randrange(len(value))
        return [_with_one_leaf_changed(rng, v) if i == place else v for i, v in enumerate(value)]
    return math.nextafter(value, math.inf) if isinstance(value, float) else f"not {value}"


@pytest.mark.parametrize("seed", range(50))
def test_keys_depend_on_every_value_and_on_no_order_of_names(seed):
    rng = random.Random(seed)
    params = {"x": _random_params(rng)}
    key = artifact_key("s", 1, params, [])
    assert artifact_key("s", 1, _shuffled(rng, params), []) == key
    assert artifact_key("s", 1, json.loads(json.dumps(params)), []) == key
    assert artifact_key("s", 1, _with_one_leaf_changed(rng, params), []) != key


def test_zero_has_one_key_whatever_its_sign():
    assert artifact_key("s", 1, {"x": -0.0}, []) == artifact_key("s", 1, {"x": 0.0}, [])
