"""Saved states of agents: whole or not there, and the newest valid one counts."""

from __future__ import annotations

import asyncio
import os
import pickle
import stat
from pathlib import Path

import pytest

from academy_hpc import CheckpointError, RuntimeConfig
from academy_hpc.checkpoint import HEADING, CheckpointFiles, StateKeeper
from academy_hpc.exchange.client import UserExchangeClient
from academy_hpc.runtime import Runtime
from tests.lasting_agents import Diary, Forgetful, Odd
from tests.running_agent import PATIENCE_S, eventually, running, running_user, until

__all__: list[str] = []

LASTS = RuntimeConfig(terminate_on_success=False)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "state" / "1f0c2d9a"


def saved(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_nothing_saved_is_nothing_loaded(folder: Path) -> None:
    assert CheckpointFiles(folder).load() is None


def test_the_last_state_comes_back_and_two_are_kept(folder: Path) -> None:
    files = CheckpointFiles(folder)
    for number in range(5):
        files.save(b"state %d" % number)
    assert CheckpointFiles(folder).load() == b"state 4"
    assert saved(folder) == ["000001-000000004.state", "000001-000000005.state"]


def test_a_state_that_has_not_changed_is_not_written_again(folder: Path) -> None:
    files = CheckpointFiles(folder)
    files.save(b"the same")
    files.save(b"the same")
    assert len(saved(folder)) == 1


def test_only_the_user_can_read_what_is_saved(folder: Path) -> None:
    CheckpointFiles(folder).save(b"secret")
    [path] = folder.iterdir()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_directory_that_others_could_have_written_is_not_read(folder: Path) -> None:
    """What is unpickled runs."""
    CheckpointFiles(folder).save(b"mine")
    folder.chmod(0o770)
    with pytest.raises(CheckpointError, match="open to other users"):
        CheckpointFiles(folder).load()


@pytest.mark.parametrize("damage", ["cut", "changed", "empty", "heading"])
def test_a_damaged_file_gives_way_to_the_one_before_it(
    folder: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    files = CheckpointFiles(folder)
    files.save(b"older")
    files.save(b"newer")
    path = folder / saved(folder)[-1]
    content = path.read_bytes()
    changes = {"cut": content[:-1], "changed": content[:-1] + b"X", "empty": b"", "heading": b"x" + content[1:]}
    path.write_bytes(changes[damage])
    assert CheckpointFiles(folder).load() == b"older"
    assert f"{path} is damaged" in caplog.text


def test_damaged_files_only_are_an_error_and_not_a_new_start(folder: Path) -> None:
    CheckpointFiles(folder).save(b"weeks of work")
    for path in folder.iterdir():
        path.write_bytes(HEADING)
    with pytest.raises(CheckpointError, match="move it away to start anew"):
        CheckpointFiles(folder).load()


def test_a_write_that_was_broken_off_leaves_what_was_there(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    CheckpointFiles(folder).save(b"good")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CheckpointError, match="No space left"):
        CheckpointFiles(folder).save(b"better")
    monkeypatch.undo()
    assert CheckpointFiles(folder).load() == b"good"
    assert len(saved(folder)) == 1


def test_states_of_an_earlier_life_that_goes_on_unseen_do_not_count(folder: Path) -> None:
    """A copy of the agent on a host that nobody reaches may save what the newer copy knows better."""
    old, new = CheckpointFiles(folder, attempt=1), CheckpointFiles(folder, attempt=2)
    old.save(b"old 1")
    new.save(b"new 1")
    for number in range(2, 5):
        old.save(b"old %d" % number)
        assert CheckpointFiles(folder, attempt=3).load() == b"new 1"


def test_lives_that_are_counted_anew_by_another_program_go_on_behind_the_last_one(folder: Path) -> None:
    """It launches under the same registration, and does not know how many lives there were."""
    CheckpointFiles(folder, attempt=3).save(b"third life")
    again = CheckpointFiles(folder)
    assert again.load() == b"third life"
    again.save(b"newer")
    assert CheckpointFiles(folder, attempt=2).load() == b"newer"


async def keeper(agent: Diary, folder: Path) -> StateKeeper:
    made = StateKeeper.of(agent, CheckpointFiles(folder))
    assert made is not None
    return made


async def test_an_agent_gets_its_own_state_back(folder: Path) -> None:
    diary, another = Diary(), Diary()
    diary.entries.append("seen")
    await (await keeper(diary, folder)).save()
    await (await keeper(another, folder)).restore()
    assert another.entries == ["seen"]


async def test_both_methods_may_be_coroutines(folder: Path) -> None:
    class Async(Diary):
        async def agent_get_state(self) -> list[str]:
            await asyncio.sleep(0)
            return self.entries

        async def agent_set_state(self, state: list[str]) -> None:
            await asyncio.sleep(0)
            self.entries = state

    diary, another = Async(), Async()
    diary.entries.append("seen")
    await (await keeper(diary, folder)).save()
    await (await keeper(another, folder)).restore()
    assert another.entries == ["seen"]


async def test_a_state_that_can_not_be_pickled_says_so(folder: Path) -> None:
    with pytest.raises(CheckpointError, match=r"agent_get_state returned can't be pickled: .*lock"):
        await (await keeper(Odd(), folder)).save()


async def test_a_state_of_other_code_is_not_damage(folder: Path) -> None:
    """An older one would be as unreadable, and starting anew would throw it away."""
    files = CheckpointFiles(folder)
    await asyncio.to_thread(files.save, pickle.dumps("older"))
    await asyncio.to_thread(files.save, b"cno_such_module\nThing\n.")
    with pytest.raises(CheckpointError, match=r"can't be unpickled: ModuleNotFoundError.*no_such_module"):
        await (await keeper(Diary(), folder)).restore()


def test_saving_and_restoring_go_together(folder: Path) -> None:
    with pytest.raises(TypeError, match="Forgetful has agent_get_state alone"):
        StateKeeper.of(Forgetful(), CheckpointFiles(folder))


# With a Runtime


async def live(agent: Diary, user: UserExchangeClient, folder: Path, registration: object) -> Runtime[Diary]:
    """Start the agent, and have it end in order."""
    runtime = Runtime(
        agent,
        exchange_factory=user.factory(),
        registration=registration,  # type: ignore[arg-type]
        config=LASTS,
        state=CheckpointFiles(folder),
    )
    task = asyncio.create_task(runtime.run_until_complete())
    async with asyncio.timeout(PATIENCE_S):
        if await runtime.wait_started():
            runtime.signal_shutdown()
        await task
    return runtime


async def test_the_state_is_there_before_the_agent_starts(folder: Path) -> None:
    async with running_user() as user:
        registration = await user.register_agent(Diary)
        first = Diary()
        first.entries.append("kept")
        await live(first, user, folder, registration)
        second = Diary()
        await live(second, user, folder, registration)
    assert second.entries == ["kept"]
    assert second.events == ["starts with 1", "ends", "starts with 1", "ends"]


async def test_an_agent_that_does_not_come_back_saves_nothing(folder: Path) -> None:
    async with running_user() as user, running(Diary(), user, state=CheckpointFiles(folder)) as agent:
        agent.runtime.signal_shutdown()
        await agent.ended()
    assert not await asyncio.to_thread(folder.exists)


async def holds(folder: Path, text: bytes) -> bool:
    return text in (await asyncio.to_thread(CheckpointFiles(folder).load) or b"")


async def test_the_state_is_saved_regularly_and_what_can_not_be_saved_kills_no_agent(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = RuntimeConfig(checkpoint_s=0.02)
    async with running_user() as user:
        async with running(Diary(), user, config=config, state=CheckpointFiles(folder)) as agent:
            await agent.handle.write("soon")
            await eventually(lambda: holds(folder, b"soon"))
        async with running(Odd(), user, config=config, state=CheckpointFiles(folder / "odd")) as agent:
            await until(lambda: caplog.text.count("can't be pickled") >= 2)
            assert await agent.handle.write("still alive") == 1


async def test_a_state_that_can_not_be_restored_keeps_the_agent_from_starting(folder: Path) -> None:
    await asyncio.to_thread(CheckpointFiles(folder).save, b"no pickle")
    async with running_user() as user:
        registration = await user.register_agent(Diary)
        diary = Diary()
        with pytest.raises(CheckpointError, match="can't be unpickled"):
            await live(diary, user, folder, registration)
        assert diary.events == []
