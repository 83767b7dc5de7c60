"""What crosses to a worker and back: text that can be read, or says why not, and shows no secret by accident."""

from __future__ import annotations

import json
import sys
import uuid
from pathlib import Path

import msgspec
import pytest

from academy_hpc import AgentId, ConnectionInfo, HttpAgentRegistration, LaunchError, LaunchSpec, RuntimeConfig, UserId
from academy_hpc.exchange.http.dial import ClientOptions
from academy_hpc.launch.source import Payload, source_of
from academy_hpc.launch.spec import AgentReport, AgentSpec, ImportFolders, Origin, WorkerReport, import_folders
from tests.launched_agents import Counter

__all__: list[str] = []

SECRET = "a-token-of-the-exchange-that-nobody-should-see"  # noqa: S105 - opens nothing


def launch_spec() -> LaunchSpec:
    agent = AgentSpec(
        HttpAgentRegistration(AgentId.new("counter")),
        source_of(Counter, ("an argument",)),
        RuntimeConfig(terminate_on_error=False, allowed_deserializers=frozenset({"json"})),
        uuid.uuid4(),
    )
    info = ConnectionInfo(("http://node1:5463",), {"Authorization": f"Bearer {SECRET}"})
    return LaunchSpec(info, ClientOptions(reconnect_s=7), (agent,), UserId.new("ada"), ImportFolders(("/a",), ("/b",)))


def test_a_spec_comes_back_from_its_text() -> None:
    spec = launch_spec()
    assert LaunchSpec.from_json(spec.to_json()) == spec


def test_the_text_of_a_spec_names_its_kind_and_version() -> None:
    fields = json.loads(launch_spec().to_json())
    assert (fields["kind"], fields["version"]) == ("academy-hpc-launch", 1)
    assert fields["agents"][0]["source"]["how"] == "reference"
    assert fields["agents"][0]["source"]["path"] == "tests.launched_agents:Counter"


def test_a_spec_shows_no_secret() -> None:
    spec = launch_spec()
    shown = f"{spec!r} {spec} {spec.agents} {spec.__rich_repr__()} {spec.agents[0].__rich_repr__()}"
    assert SECRET not in shown
    assert "counter" in shown
    data = Payload.pack("a value", "it").data
    assert data not in repr(Payload(data))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "no launch spec"),
        ("[]", "no launch spec"),
        ("{}", "no launch spec"),
        ('{"kind": "academy-hpc-connection", "version": 1}', "its kind is 'academy-hpc-connection'"),
        ('{"kind": "academy-hpc-launch", "version": 2}', "has version 2, and this academy_hpc reads version 1"),
        ('{"kind": "academy-hpc-launch", "version": 1}', "no launch spec"),
        (b"\xff\xfe", "no launch spec"),
    ],
)
def test_other_text_is_refused_in_one_line_without_it(text: str | bytes, reason: str) -> None:
    with pytest.raises(LaunchError, match=reason) as caught:
        LaunchSpec.from_json(text)
    assert "\n" not in str(caught.value)
    assert caught.value.__cause__ is None


def test_a_damaged_spec_is_told_without_its_secret() -> None:
    with pytest.raises(LaunchError) as caught:
        LaunchSpec.from_json(launch_spec().to_json().replace("node1:5463", "node1:port"))
    assert SECRET not in str(caught.value)


def test_fields_of_a_later_release_are_ignored() -> None:
    spec = launch_spec()
    assert LaunchSpec.from_json(json.dumps({**json.loads(spec.to_json()), "a_later_field": 3600})) == spec


def test_reports_come_back_from_their_text() -> None:
    agent = AgentReport(AgentId.new("a"), "failed", "it broke", "Traceback ...", Origin.here())
    assert AgentReport.from_json(agent.to_json()) == agent
    worker = WorkerReport(Origin.here(), (agent,), "an error")
    assert WorkerReport.from_json(worker.to_json()) == worker
    with pytest.raises(LaunchError, match="its kind is"):
        WorkerReport.from_json(agent.to_json())


def test_the_shares_of_all_ranks_are_even_and_all_there_is() -> None:
    [agent] = launch_spec().agents
    numbers = [msgspec.structs.replace(agent, tag=uuid.UUID(int=number)) for number in range(7)]
    spec = msgspec.structs.replace(launch_spec(), agents=tuple(numbers), ranks=None)
    shares = [spec.share(rank, 3) for rank in range(3)]
    assert [len(share.agents) for share in shares] == [2, 2, 3]
    assert [one for share in shares for one in share.agents] == numbers
    assert all(share.ranks == 1 for share in shares)
    assert spec.share(8, 9).agents == (numbers[6],)
    assert sum(len(spec.share(rank, 9).agents) for rank in range(9)) == 7


def test_folders_of_the_program_are_told_apart_from_the_installation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script, late = tmp_path / "script", tmp_path / "late"
    script.mkdir()
    late.mkdir()
    monkeypatch.chdir(script)
    installation = str(Path(sys.prefix) / "lib")
    monkeypatch.setattr(sys, "path", ["", str(tmp_path / "missing"), installation, str(late), installation])
    assert import_folders() == ImportFolders((str(script),), (str(late),))
