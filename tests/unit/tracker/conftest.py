"""The core and the machine in the states in which most of their tests begin."""

import pytest

from tests.unit.tracker.core import World
from tests.unit.tracker.talk import Talk
from tests.unit.tracker.wire import ANN, at, claim, opening
from tracker.messages import SessionGranted
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


@pytest.fixture
def talk() -> Talk:
    talk = Talk()
    (reply,) = talk.say(opening(), 1)
    assert isinstance(reply.body, SessionGranted)
    return talk
