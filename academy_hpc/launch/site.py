"""The profile of one machine: its scheduler, what it demands of a job, where its exchange may run, what to know of it.

A profile is a TOML file (``launchers/sites/schema.json`` describes it). Its values are merged with those that a user
gives, once, into a `Site` that knows where each of them came from.
"""

from __future__ import annotations

import difflib
import math
import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, Self

import msgspec

from academy_hpc.errors import LaunchError
from academy_hpc.launch.data import data_names, read_data
from academy_hpc.launch.job import ALIASES
from academy_hpc.launch.profile import JOB_OPTIONS, Profile, Queue
from academy_hpc.launch.walltime import walltime_s

__all__ = ["SITE_VARIABLE", "Site", "SiteFile", "find_site_file", "site_names", "user_folder"]

SITE_VARIABLE = "ACADEMY_HPC_SITE"
"""Environment variable with the name of the site, where none is given."""

DEFAULT_SITE = "local"
MOST_PARENTS = 8
NOT_GIVEN: tuple[Any, ...] = (None, (), {})

_KINDS = {"str": "text", "int": "a whole number", "float": "a number", "bool": "true or false"} | {
    "array": "a list",
    "object": "a table",
    "Object": "The table",
}


class SiteFile(NamedTuple):
    """One file of a profile.

    Attributes:
        name: Of the site.
        place: Where it is, for people.
        text: What it says.
        packaged: Whether it came with academy_hpc.
    """

    name: str
    place: str
    text: str
    packaged: bool

    def values(self) -> dict[str, Any]:
        """What it says, checked. Raises LaunchError: all that is wrong, one line for each."""
        problems, values = self._checked()
        if problems:
            raise LaunchError("\n".join(problems))
        return values

    def problems(self) -> list[str]:
        """All that is wrong with it, one line for each."""
        return self._checked()[0]

    def _checked(self) -> tuple[list[str], dict[str, Any]]:
        try:
            values = tomllib.loads(self.text)
        except tomllib.TOMLDecodeError as error:
            return [f"{self.place} is no TOML: {error}."], {}
        problems = [problem for key, value in values.items() if (problem := _problem(key, value))]
        return [f"{self.place}: {problem}." for problem in problems], values


class Site(Profile, frozen=True, kw_only=True):
    """One machine, as it is for this user now.

    Attributes:
        name: What it is called.
        origins: Where each value came from, for people; a queue's name is ``queues.NAME``.
    """

    name: str
    origins: dict[str, str]

    @classmethod
    def load(
        cls,
        name: str | None = None,
        *,
        given: Mapping[str, Any] | None = None,
        environ: Mapping[str, str] | None = None,
    ) -> Self:
        """Merge what is known of a site. The first that has a value counts: given, environment, files, default.

        Args:
            name: Of the site, or of a scheduler, or the path of a profile. None: what ``ACADEMY_HPC_SITE`` says, else
                this machine alone.
            given: Values that the user gives now. Names that no profile has are left alone.
            environ: Where ``ACADEMY_HPC_ACCOUNT``, ``ACADEMY_HPC_QUEUE`` and so on are looked up; None: the
                environment of this process.

        Raises:
            LaunchError: There is no such site, or a value is not what it should be: it says where that came from.
        """
        environ = os.environ if environ is None else environ
        merged = _Merged()
        named = {ALIASES.get(key, key): value for key, value in (given or {}).items() if value is not None}
        merged.add("given", {key: _in_words(key, value) for key, value in named.items()})
        for key in Profile.__struct_fields__:
            variable = variable_of(key)
            if environ.get(variable) and key not in FILE_ONLY:
                merged.add(f"environment {variable}", {key: _from_text(key, environ[variable])})
        start = find_site_file(name or environ.get(SITE_VARIABLE) or DEFAULT_SITE, environ=environ)
        for file in _with_parents(start, environ):
            merged.add(file.place, file.values())
        return cls(name=start.name, origins=merged.origins, **merged.fields())._with_rules_of_queue()

    def origin(self, key: str) -> str:
        """Where a value came from."""
        return self.origins.get(key, "default")

    def job_options(self) -> dict[str, Any]:
        """The keyword options for `academy_hpc.launch.job.JobRequest` that this site has values for."""
        options = {key: getattr(self, key) for key in JOB_OPTIONS}
        return {key: value for key, value in options.items() if value not in NOT_GIVEN}

    def limits(self) -> tuple[str, Queue] | None:
        """The chosen queue and what it takes; None: not known. On some machines of Slurm the QOS is what limits."""
        known = [name for name in (self.qos, self.queue) if name in self.queues]
        return (known[0], self.queues[known[0]]) if known and known[0] is not None else None

    def check(self) -> list[str]:
        """What speaks against submitting this job, a sentence each: the scheduler has the last word on these.

        Raises:
            LaunchError: The site demands an option that has no value, or the walltime can't be read.
        """
        missing = [key for key in self.required if getattr(self, key) in NOT_GIVEN]
        if missing:
            raise LaunchError(self._missing_text(missing))
        limits = self.limits()
        if limits is None:
            return []
        name, queue = limits
        return queue.concerns(name, self.nodes or 1, self.walltime)

    def _with_rules_of_queue(self) -> Self:
        limits = self.limits()
        if limits is None or limits[1].max_jobs is None or self.max_jobs is not None:
            return self
        name, queue = limits
        origins = self.origins | {"max_jobs": self.origin(f"queues.{name}")}
        return msgspec.structs.replace(self, max_jobs=queue.max_jobs, origins=origins)

    def _missing_text(self, missing: list[str]) -> str:
        first = missing[0]
        return (
            f"{self.name} takes no job without {' and '.join(missing)}: give --{first} ({first}=... in Python), "
            f"set {variable_of(first)}, or keep it in {user_folder() / f'{self.name}.toml'}."
        )


FILE_ONLY = frozenset({"extends", "title", "documentation", "required", "queues", "env"})
"""What the environment can't say."""


class _Merged:
    """Values, and where each came from: what was added first counts."""

    def __init__(self) -> None:
        self._values: dict[str, Any] = {}
        self.origins: dict[str, str] = {}

    def add(self, place: str, values: Mapping[str, Any]) -> None:
        for key, value in values.items():
            if key == "queues":
                self._add_queues(place, value)
            elif key in Profile.__struct_fields__ and key not in self._values:
                self._values[key] = value
                self.origins[key] = place

    def _add_queues(self, place: str, queues: Mapping[str, Any]) -> None:
        known = self._values.setdefault("queues", {})
        for name, queue in queues.items():
            if name not in known:
                known[name] = queue
                self.origins[f"queues.{name}"] = place

    def fields(self) -> dict[str, Any]:
        for key, value in self._values.items():
            if problem := _problem(key, value):
                raise LaunchError(f"{self.origins[key]}: {problem}.")
        profile = msgspec.convert(self._values, Profile)
        return {key: getattr(profile, key) for key in Profile.__struct_fields__}


def variable_of(key: str) -> str:
    """The environment variable with which a user gives a value: ``ACADEMY_HPC_ACCOUNT``."""
    return f"ACADEMY_HPC_{key.upper()}"


def user_folder(environ: Mapping[str, str] | None = None) -> Path:
    """Where a user keeps profiles: ``~/.config/academy_hpc/sites``."""
    environ = os.environ if environ is None else environ
    base = environ.get("XDG_CONFIG_HOME") or Path(environ.get("HOME") or Path.home()) / ".config"
    return Path(base) / "academy_hpc" / "sites"


def site_names(environ: Mapping[str, str] | None = None) -> list[str]:
    """All sites that have a profile."""
    own = [path.stem for path in user_folder(environ).glob("*.toml")]
    return sorted({*own, *data_names("sites", ".toml")})


def find_site_file(name: str, *, environ: Mapping[str, str] | None = None, packaged_only: bool = False) -> SiteFile:
    """The file of a site: the user's own, else the packaged one; or the one at a path.

    Raises:
        LaunchError: There is none, or it can't be read.
    """
    if os.sep in name or name.endswith(".toml"):
        return _read_file(Path(name).expanduser())
    path = user_folder(environ) / f"{name}.toml"
    if path.is_file() and not packaged_only:
        return _read_file(path)
    if name in data_names("sites", ".toml"):
        return SiteFile(name, f"packaged {name}.toml", read_data(f"sites/{name}.toml"), packaged=True)
    near = difflib.get_close_matches(name, site_names(environ), n=1)
    meant = f" Did you mean {near[0]}?" if near else ""
    raise LaunchError(
        f"There is no site {name!r}.{meant} `academy-hpc site list` shows all; {path} would be your own profile of it."
    )


def _read_file(path: Path) -> SiteFile:
    try:
        return SiteFile(path.stem, str(path), path.read_text(encoding="utf-8"), packaged=False)
    except (OSError, UnicodeDecodeError) as error:
        raise LaunchError(f"The profile {path} can't be read: {error}.") from None


def _with_parents(file: SiteFile, environ: Mapping[str, str]) -> list[SiteFile]:
    """A file and those it extends, nearest first: a user's own polaris.toml goes on in the packaged one."""
    files = [file]
    while parent := _parent(files[-1], environ):
        if len(files) >= MOST_PARENTS:
            raise LaunchError(f"{file.place} extends itself: {' > '.join(one.name for one in files)}.")
        files.append(parent)
    return files


def _parent(file: SiteFile, environ: Mapping[str, str]) -> SiteFile | None:
    name = file.values().get("extends")
    if name is None or name == file.name:
        has_packaged = not file.packaged and file.name in data_names("sites", ".toml")
        return find_site_file(file.name, environ=environ, packaged_only=True) if has_packaged else None
    try:
        return find_site_file(name, environ=environ, packaged_only=file.packaged)
    except LaunchError as error:
        raise LaunchError(f"{file.place}: extends = {name!r}: {error}") from None


def _problem(key: str, value: Any) -> str | None:
    """What is wrong with one value of a profile, to follow on its place and a colon."""
    if key not in Profile.__struct_fields__:
        near = difflib.get_close_matches(key, Profile.__struct_fields__, n=1)
        return f"{key!r} is not a value of a profile" + (f"; perhaps {near[0]!r} is meant" if near else "")
    try:
        profile = msgspec.convert({key: value}, Profile)
        if key == "walltime" and profile.walltime is not None:
            walltime_s(profile.walltime)
        for queue in profile.queues.values():
            queue.check()
    except msgspec.ValidationError as error:
        return f"{key} = {value!r}: {_plain(str(error))}"
    except ValueError as error:
        return f"{key}: {error}"
    return None


def _plain(text: str) -> str:
    """What msgspec says, in the words of people who write TOML."""
    text, _, place = text.replace(" | null", "").partition(" - at `$")
    text = re.sub(r"Expected `str` matching regex .*", "it has characters, or a line break, that it can't have", text)
    text = re.sub(r"`(\w+)`", lambda word: _KINDS.get(word[1], word[0]), text)
    inner = place.rstrip("`").partition("[")[2]
    return f"{text} (in [{inner})" if inner else text


def _in_words(key: str, value: Any) -> Any:
    """A value as a profile has it: programs give paths, and seconds."""
    if key == "walltime" and isinstance(value, int | float):
        return f"{math.ceil(value)}s"
    return str(value) if isinstance(value, Path) else value


def _from_text(key: str, text: str) -> Any:
    """A value from an environment variable; a list has one item a line."""
    if isinstance(getattr(Profile(), key), tuple):
        return [line for line in text.splitlines() if line.strip()]
    try:
        return getattr(msgspec.convert({key: text}, Profile, strict=False), key)
    except msgspec.ValidationError:
        return text  # what is wrong with it is told with all else
