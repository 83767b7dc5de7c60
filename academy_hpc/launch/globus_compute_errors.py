"""What errors of Globus Compute mean: errors in, words out.

Those of a task are texts (a traceback, or what its endpoint says), those of a call are objects of several packages
without a common class. Each becomes one line for people.
"""

from __future__ import annotations

import platform
import re
import textwrap
import uuid

import academy_hpc
from academy_hpc.launch.spec import EndCause

__all__ = ["explain_call", "explain_task"]

LINE_CHARACTERS = 400

WORKER_DIED = (
    "its worker process died {place}: killed, out of memory, or crashed. Where workers die at every start, another "
    "version of Python or of a package is likely: here it is {here}"
)
NODE_GONE = "the node or the batch job of its worker is gone {place}: walltime, preemption or a node failure"
NOT_INSTALLED = (
    "the Python of the endpoint's workers has no academy_hpc that fits: there has to be the same as here, {here}; see "
    "worker_init in the endpoint's template ({line})"
)
NO_JOBS = (
    "all batch jobs of the endpoint have failed ({line}); where the scheduler refuses them, change "
    "user_endpoint_config or the endpoint's template"
)
TIMED_OUT = "the endpoint ended its worker after the time that its GC_TASK_TIMEOUT allows"
LARGE_REPORT = "it has ended, and its report was too large for Globus Compute"

# What a task's text says, what that means, and the cause.
TASK_ERRORS: tuple[tuple[str, str, EndCause], ...] = (
    (r"\bBadStateException: ", NO_JOBS, "lost"),
    (r"\bWorkerLost\b", WORKER_DIED, "lost"),
    (r"\bManagerLost\b", NODE_GONE, "lost"),
    (r"\b(ModuleNotFoundError|ImportError|AttributeError)\b.*\bacademy_hpc\b", NOT_INSTALLED, "agent_error"),
    (r"\bAppTimeout\b", TIMED_OUT, "walltime"),
    (r"\bMaxResultSizeExceeded\b", LARGE_REPORT, "lost"),
)

NO_ENDPOINT = "there is no endpoint {endpoint}, or you may not see it; its id is shown by: globus-compute-endpoint list"
TOO_LARGE = "the agents of one worker are too large for it: have them read their data from a file"
NOT_PERMITTED = (
    "endpoint {endpoint} runs certain functions only: the one of academy_hpc has to be among its allowed_functions "
    "({detail})"
)
NOT_LOGGED_IN = (
    "you are not logged in to Globus Compute. Do it once, on a terminal: python -c 'from globus_compute_sdk import "
    "Client; Client()'; or give a service account, in GLOBUS_COMPUTE_CLIENT_ID and GLOBUS_COMPUTE_CLIENT_SECRET"
)
NO_LOGIN = (
    "it does not accept your login. Log in again: globus-compute-endpoint login --force; or check the variables "
    "GLOBUS_COMPUTE_CLIENT_ID and GLOBUS_COMPUTE_CLIENT_SECRET"
)
NO_RIGHT = "you may not use endpoint {endpoint} ({detail})"
TOO_MANY = "it has had too many requests from you: launch agents together, with launch_many"

# By the code of the service, or the HTTP status.
CALL_ERRORS = {
    "ENDPOINT_NOT_FOUND": NO_ENDPOINT,
    "TASK_PAYLOAD_TOO_LARGE": TOO_LARGE,
    "FUNCTION_NOT_PERMITTED": NOT_PERMITTED,
    "401": NO_LOGIN,
    "403": NO_RIGHT,
    "404": NO_ENDPOINT,
    "413": TOO_LARGE,
    "429": TOO_MANY,
}


def explain_task(error: BaseException) -> tuple[str, EndCause]:
    """Why a task that was submitted has failed, and the cause."""
    text = getattr(error, "remote_data", None)
    if text is None:  # the SDK gave up: that says nothing about the task
        return f"the connection on which Globus Compute tells results was lost ({_named(error)})", "lost"
    text, line = str(text), _last_line(str(text))
    here = f"Python {platform.python_version()} and academy_hpc {academy_hpc.__version__}"
    place = re.search(r"\bon host \S+", text)
    for pattern, meaning, cause in TASK_ERRORS:
        if re.search(pattern, text):
            return meaning.format(place=place[0] if place else "there", line=line, here=here), cause
    return f"its task failed on the endpoint: {line}", "agent_error"


def explain_call(error: BaseException, endpoint_id: uuid.UUID) -> str:
    """Why Globus Compute could not be asked for something."""
    if isinstance(error, EOFError):  # it would have asked a person
        return NOT_LOGGED_IN
    status, code = getattr(error, "http_status", None), getattr(error, "code", None)
    if status is None:
        return f"Globus Compute can't be used from here: {_named(error)}"
    answer = getattr(error, "raw_json", None)
    detail = _one_line(str((answer or {}).get("reason") or getattr(error, "message", None) or error))
    meaning = CALL_ERRORS.get(str(code)) or CALL_ERRORS.get(str(status)) or "{detail}"
    return f"Globus Compute answered {status}: {meaning.format(endpoint=endpoint_id, detail=detail)}"


def _last_line(text: str) -> str:
    """Of a traceback, the error; rulers of the endpoint stand around it."""
    lines = [line.strip() for line in text.splitlines() if re.search(r"\w", line)]
    return _one_line(lines[-1]) if lines else "it gave no reason"


def _named(error: BaseException) -> str:
    return _one_line(f"{type(error).__name__}: {error}")


def _one_line(text: str) -> str:
    return textwrap.shorten(text, LINE_CHARACTERS, placeholder=" ...")
