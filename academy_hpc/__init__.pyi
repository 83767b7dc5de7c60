# The names of `academy_hpc.__init__` for type checkers, which can't follow a lazy `__getattr__`. tests/test_project.py
# compares the two, so a public name is added in both places.
from academy_hpc.agent import (
    Agent as Agent,
    RuntimeConfig as RuntimeConfig,
    action as action,
    event as event,
    loop as loop,
    timer as timer,
)
from academy_hpc.dead_letters import DeadLetter as DeadLetter
from academy_hpc.errors import (
    AcademyError as AcademyError,
    AcademyRemoteError as AcademyRemoteError,
    ActionCancelledError as ActionCancelledError,
    ActionInterruptedError as ActionInterruptedError,
    ActionInvalidStateError as ActionInvalidStateError,
    AgentAbsentError as AgentAbsentError,
    AgentLoopError as AgentLoopError,
    AgentNotInitializedError as AgentNotInitializedError,
    AgentTerminatedError as AgentTerminatedError,
    BadEntityIdError as BadEntityIdError,
    BadRequestError as BadRequestError,
    CheckpointError as CheckpointError,
    ConnectionInfoError as ConnectionInfoError,
    DeliveryFailedError as DeliveryFailedError,
    DeserializationMethodProhibitedError as DeserializationMethodProhibitedError,
    ExceptionSerializationError as ExceptionSerializationError,
    ExchangeChangedError as ExchangeChangedError,
    ExchangeClientNotFoundError as ExchangeClientNotFoundError,
    ExchangeError as ExchangeError,
    ExchangeFullError as ExchangeFullError,
    ExchangeStartError as ExchangeStartError,
    ExchangeUnavailableError as ExchangeUnavailableError,
    ExchangeUnreachableError as ExchangeUnreachableError,
    ForbiddenError as ForbiddenError,
    IncompatibleProtocolError as IncompatibleProtocolError,
    InvalidClientError as InvalidClientError,
    LaunchError as LaunchError,
    ListenerSupersededError as ListenerSupersededError,
    LoginRequiredError as LoginRequiredError,
    MailboxFullError as MailboxFullError,
    MailboxTerminatedError as MailboxTerminatedError,
    MessageTooLargeError as MessageTooLargeError,
    PingCancelledError as PingCancelledError,
    RefusedError as RefusedError,
    RequestError as RequestError,
    SerializationError as SerializationError,
    StoreError as StoreError,
    TooFewSlotsError as TooFewSlotsError,
    UnauthorizedError as UnauthorizedError,
    UserTerminatedError as UserTerminatedError,
)
from academy_hpc.exchange.client import (
    AgentExchangeClient as AgentExchangeClient,
    ExchangeClient as ExchangeClient,
    UserExchangeClient as UserExchangeClient,
)
from academy_hpc.exchange.factory import ExchangeFactory as ExchangeFactory
from academy_hpc.exchange.http.client import (
    HttpAgentRegistration as HttpAgentRegistration,
    HttpExchangeFactory as HttpExchangeFactory,
    HttpExchangeTransport as HttpExchangeTransport,
)
from academy_hpc.exchange.http.connection import ConnectionInfo as ConnectionInfo
from academy_hpc.exchange.http.console import HttpExchangeConsole as HttpExchangeConsole
from academy_hpc.exchange.http.globus_settings import GlobusSettings as GlobusSettings
from academy_hpc.exchange.http.spawn import spawn_http_exchange as spawn_http_exchange
from academy_hpc.exchange.transport import (
    AgentRegistration as AgentRegistration,
    ExchangeTransport as ExchangeTransport,
    MailboxStatus as MailboxStatus,
)
from academy_hpc.handle import Handle as Handle
from academy_hpc.identifiers import AgentId as AgentId, EntityId as EntityId, UserId as UserId
from academy_hpc.launch.batch import BatchLauncher as BatchLauncher
from academy_hpc.launch.enrol import submit_run as submit_run
from academy_hpc.launch.executor import ExecutorLauncher as ExecutorLauncher
from academy_hpc.launch.globus_compute import GlobusComputeLauncher as GlobusComputeLauncher
from academy_hpc.launch.manager import Manager as Manager
from academy_hpc.launch.parsl import ParslLauncher as ParslLauncher, parsl_config as parsl_config
from academy_hpc.launch.request import AgentLaunch as AgentLaunch
from academy_hpc.launch.restart import RestartPolicy as RestartPolicy
from academy_hpc.launch.run import Run as Run
from academy_hpc.launch.site import Site as Site
from academy_hpc.launch.spec import LaunchSpec as LaunchSpec
from academy_hpc.message import Header as Header, Message as Message
from academy_hpc.runtime import Runtime as Runtime
from academy_hpc.serialization import NoPickleMixin as NoPickleMixin

__version__: str
