"""What daemons write to stderr, for people or for programs; who held what stands elsewhere, in the log.

Rule 1: a line says what happened and, where something is to be done, what. Rule 2: the same as fields, in
JSON: `event` has a name that stays, its values are plain. Rule 3: never a secret: what keys are made of does
not come here. Rule 4: under systemd's journal each line has its priority, and no time of ours.
"""

import json
import logging
import os
import sys
import time
from collections.abc import Mapping
from ipaddress import IPv4Address
from typing import Final, Literal

from tracker.events import (
    ClockStepped,
    Event,
    KeyChanged,
    PortBound,
    PortRefused,
    PortUnbound,
    RecordsMissed,
    ServiceDefined,
    ServiceRemoved,
    SessionEnded,
    SessionOpened,
    SessionRefused,
    WorkerLost,
    WorkerReturned,
)

LOGGER: Final = logging.getLogger(__name__)
LEVEL_VARIABLE: Final = "PORTHOLD_LOG_LEVEL"
_PRIORITIES: Final = {logging.DEBUG: 7, logging.INFO: 6, logging.WARNING: 4, logging.ERROR: 3}

Form = Literal["text", "json"]
Field = str | int | float | None


def about(event: str, **fields: Field) -> dict[str, object]:
    """The `extra` of a logging call: what the line says, for programs."""
    return {"event": event, "fields": fields}


class Formatter(logging.Formatter):
    """One line for each record; `priority`: the journal reads them."""

    def __init__(self, program: str, form: Form, *, priority: bool) -> None:
        super().__init__()
        self._program = program
        self._form = form
        self._priority = priority

    def format(self, record: logging.LogRecord) -> str:
        line = self._json(record) if self._form == "json" else self._text(record)
        if not self._priority:
            return line
        prefix = f"<{_PRIORITIES.get(record.levelno, 2)}>"
        return "\n".join(prefix + part for part in line.split("\n"))

    def _text(self, record: logging.LogRecord) -> str:
        said = f"porthold {self._program}: {record.getMessage()}"
        if record.exc_info:
            said += "\n" + self.formatException(record.exc_info)
        return said if self._priority else f"{_time(record.created)} {said}"

    def _json(self, record: logging.LogRecord) -> str:
        values: dict[str, object] = {
            "time": _time(record.created),
            "level": record.levelname.lower(),
            "program": self._program,
            "event": getattr(record, "event", None),
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            values["traceback"] = self.formatException(record.exc_info)
        return json.dumps(values, ensure_ascii=False)


def _time(seconds: float) -> str:
    whole, milliseconds = divmod(int(seconds * 1000), 1000)
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(whole))}.{milliseconds:03d}Z"


def set_up(program: str, form: Form, environment: Mapping[str, str] = os.environ) -> None:
    """To stderr, from $PORTHOLD_LOG_LEVEL (INFO) upwards; ValueError for a level that there is none of."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Formatter(program, form, priority=is_journal(environment)))
    level = environment.get(LEVEL_VARIABLE, "INFO").upper()
    logging.basicConfig(level=level, handlers=[handler])


def is_journal(environment: Mapping[str, str]) -> bool:
    """Whether stderr is systemd's journal, and not only our parent's: $JOURNAL_STREAM, systemd.exec(5)."""
    try:
        status = os.fstat(2)
    except OSError:
        return False
    return environment.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"


def tell(event: Event) -> None:
    """Of what has just been recorded, that which an operator wants to see go by."""
    match event:
        case PortBound(binding=binding, resource=it):
            holder = str(IPv4Address(event.holder))
            LOGGER.info(
                "%s holds %s of %s (binding %d)",
                holder,
                it.service,
                it.gateway,
                binding,
                extra=about(
                    "port-bound", gateway=it.gateway, service=it.service, binding=binding, holder=holder
                ),
            )
        case PortUnbound(binding, reason):
            said = about("port-unbound", binding=binding, reason=reason.value)
            LOGGER.info("binding %d is over: %s", binding, reason.value, extra=said)
        case PortRefused(binding=binding):
            claimant = str(IPv4Address(event.claimant))
            said = about("claim-refused", binding=binding, claimant=claimant)
            LOGGER.info("%s is refused what binding %d holds", claimant, binding, extra=said)
        case SessionOpened() | SessionRefused() | SessionEnded() | WorkerLost() | WorkerReturned():
            _tell_of_session(event)
        case ServiceDefined(gateway, service):
            said = about("service-defined", gateway=gateway, service=service.name)
            LOGGER.info("gateway %s has the service %s", gateway, service.name, extra=said)
        case ServiceRemoved(gateway, name):
            said = about("service-removed", gateway=gateway, service=name)
            LOGGER.info("gateway %s no longer has the service %s", gateway, name, extra=said)
        case RecordsMissed(worker, incarnation, first, last):
            said = about("records-missed", worker=worker, incarnation=incarnation, first=first, last=last)
            LOGGER.warning("messages of worker %s are lost for good, from %d on", worker, first, extra=said)
        case ClockStepped(from_ns, to_ns):
            step_ms = (to_ns - from_ns) // 1_000_000
            LOGGER.warning(
                "the wall clock stepped by %d ms", step_ms, extra=about("clock-stepped", step_ms=step_ms)
            )
        case KeyChanged(key):
            LOGGER.info("this log is signed by %s from here on", key, extra=about("key-changed", key=key))
        case _:
            pass  # workers' own reports, and what the log says of itself: `porthold log` has them all


def _tell_of_session(
    event: SessionOpened | SessionRefused | SessionEnded | WorkerLost | WorkerReturned,
) -> None:
    level, name, said = _SESSIONS[type(event)]
    reason = ""
    if isinstance(event, SessionEnded):
        reason = event.reason.value
        said = f"{said}: {reason}"
    fields = about(name, gateway=event.gateway, worker=event.worker, epoch=event.epoch, reason=reason)
    LOGGER.log(level, said, event.worker, event.gateway, event.epoch, extra=fields)


_SESSIONS: Final[dict[type[Event], tuple[int, str, str]]] = {
    SessionOpened: (logging.INFO, "session-opened", "worker %s speaks for gateway %s (epoch %d)"),
    SessionRefused: (
        logging.WARNING,
        "session-refused",
        "worker %s may not have gateway %s: the session of epoch %d is another one's, and alive",
    ),
    SessionEnded: (
        logging.INFO,
        "session-ended",
        "worker %s no longer speaks for gateway %s (epoch %d)",
    ),
    WorkerLost: (
        logging.WARNING,
        "worker-lost",
        "worker %s of gateway %s (epoch %d) is silent: is it running, does its machine answer?",
    ),
    WorkerReturned: (logging.INFO, "worker-returned", "worker %s of gateway %s (epoch %d) is back"),
}
