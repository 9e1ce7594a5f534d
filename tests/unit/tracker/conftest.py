"""The core in the states in which most of its tests begin."""

import pytest

from tests.unit.tracker.core import World
from tests.unit.tracker.wire import ANN, at, claim, opening
from tracker.ownership import Start


@pytest.fixture
def world() -> World:
    world = World()
    world(Start("1", "boot", None), at(0))
    return world


@pytest.fixture
def opened(world: World) -> World:
    world.say(opening())
    return world


@pytest.fixture
def held(opened: World) -> World:
    opened.say(claim(ANN), 1)
    return opened
