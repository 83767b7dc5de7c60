"""How agents get to a worker: by reference, as instances, by value."""

from __future__ import annotations

import threading
from typing import Any

import msgspec
import pytest

from academy_hpc import Agent, LaunchError
from academy_hpc.launch.source import ByInstance, ByReference, ByValue, Payload, python_minor, source_of
from tests.launched_agents import Counter, Fragile

__all__: list[str] = []


class Outer:
    class Inner(Counter):
        pass


class Locked(Counter):
    def __init__(self) -> None:
        super().__init__()
        self.lock = threading.Lock()


def local_class() -> type[Agent]:
    class Local(Counter):
        pass

    return Local


def test_an_importable_class_goes_by_reference() -> None:
    source = source_of(Counter, (3,))
    assert isinstance(source, ByReference)
    assert source.path == "tests.launched_agents:Counter"
    agent = source.build()
    assert isinstance(agent, Counter)
    assert agent.total == 3


def test_a_class_without_arguments_needs_no_pickle_at_all() -> None:
    assert source_of(Counter) == ByReference("tests.launched_agents:Counter")


def test_a_nested_class_goes_by_reference_too() -> None:
    source = source_of(Outer.Inner)
    assert isinstance(source, ByReference)
    assert type(source.build()) is Outer.Inner


def test_an_instance_travels_with_its_state_and_finds_its_class_by_import() -> None:
    source = source_of(Counter(7))
    assert isinstance(source, ByInstance)
    assert source.instance.python is None
    agent = source.build()
    assert type(agent) is Counter
    assert agent.total == 7


@pytest.mark.parametrize("as_instance", [False, True])
def test_what_can_not_be_imported_travels_by_value_and_needs_this_python(as_instance: bool) -> None:
    cls = local_class()
    source = source_of(cls() if as_instance else cls)
    payload = source.instance if isinstance(source, ByInstance) else source.code  # type: ignore[union-attr]
    assert isinstance(source, ByInstance if as_instance else ByValue)
    assert payload.python == python_minor()
    assert isinstance(source.build(), Counter)


def test_another_python_is_told_before_its_code_is_read() -> None:
    source: Any = source_of(local_class())
    source = msgspec.structs.replace(source, code=msgspec.structs.replace(source.code, python="2.7"))
    with pytest.raises(LaunchError, match=r"as code of Python 2\.7, and the worker has Python 3\.") as caught:
        source.build()
    assert "move the class into a module" in str(caught.value)


def test_an_argument_with_code_needs_this_python_too() -> None:
    source = source_of(Counter, (lambda: 1,))
    assert isinstance(source, ByReference)
    assert source.arguments is not None
    assert source.arguments.python == python_minor()


def test_a_module_that_is_not_there_is_told_with_where_it_was_looked_for() -> None:
    with pytest.raises(LaunchError, match=r"no_such_package\.agents:A can't be imported .*No module named") as caught:
        ByReference("no_such_package.agents:A").build()
    assert "imports from [" in str(caught.value)


def test_a_class_that_is_not_in_its_module_is_told() -> None:
    with pytest.raises(LaunchError, match="NoSuchAgent"):
        ByReference("tests.launched_agents:NoSuchAgent").build()


def test_something_that_is_no_agent_is_told() -> None:
    with pytest.raises(LaunchError, match="gave OrderedDict, which is no agent"):
        ByReference("collections:OrderedDict").build()
    with pytest.raises(TypeError, match="neither an agent nor a class of agents"):
        source_of(dict)  # type: ignore[arg-type]


def test_a_constructor_that_raises_is_told() -> None:
    with pytest.raises(LaunchError, match=r"launched_agents\.Fragile raised ValueError: no data") as caught:
        source_of(Fragile, ("no data",)).build()
    assert isinstance(caught.value.__cause__, ValueError)


def test_a_wrong_call_is_told_before_anything_is_started() -> None:
    with pytest.raises(TypeError, match=r"Counter: .*'size'.*Its constructor is .*\(total: "):
        source_of(Counter, (), {"size": 3})


def test_an_instance_takes_no_arguments() -> None:
    with pytest.raises(TypeError, match="an instance has been constructed"):
        source_of(Counter(), (3,))


def test_what_can_not_be_pickled_is_told_with_a_way_out() -> None:
    with pytest.raises(LaunchError, match=r"Locked can't be sent to a worker: .*lock.* in its constructor"):
        source_of(Locked())


def test_a_payload_that_is_damaged_is_told() -> None:
    with pytest.raises(LaunchError, match="The thing can't be read on the worker"):
        Payload("AAAA").unpack("The thing")
