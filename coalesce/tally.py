"""What happened, counted where it happens, by reasons of which there are few: for whoever looks (see admin/)."""

from __future__ import annotations

import enum
from collections import Counter


class Closed(enum.Enum):
    """Why coalesce closed a client, which had not asked for it."""

    OUTBOX = "outbox"  # it left too many replies unread
    MEMORY = "memory"  # it held most, when all together held too much
    SILENCE = "silence"  # nothing was heard from its host
    LOST_UPSTREAM = "lost_upstream"  # it had a request in flight on a connection that was lost, or one of its own
    FAULT = "fault"  # of ours


class Lost(enum.Enum):
    """Why a lane's connection was lost. (Leases are not in here: they end with their clients.)"""

    CLOSED = "closed"  # by the upstream
    RESET = "reset"
    SILENT = "silent"
    DESYNC = "desync"
    FAULT = "fault"  # of ours
    REPLACED = "replaced"  # by one to another upstream
    OTHER = "other"


class Dial(enum.Enum):
    """What became of an attempt to connect to the upstream."""

    CONNECTED = "connected"
    REFUSED = "refused"  # the credentials, or the database
    FAILED = "failed"


class Side(enum.Enum):
    """Who broke the protocol."""

    CLIENT = "client"
    UPSTREAM = "upstream"


class Tally:
    """Of one run."""

    def __init__(self) -> None:
        self.clients_refused = 0  # over --max-clients
        self.closed: Counter[Closed] = Counter()
        self.lost: Counter[Lost] = Counter()
        self.dials: Counter[Dial] = Counter()
        self.protocol_errors: Counter[Side] = Counter()
        # Bytes, on all upstream connections once their handshake is over.
        self.sent = 0
        self.received = 0
