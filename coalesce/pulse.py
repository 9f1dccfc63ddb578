"""When a peer's host was last known to be there, from what the kernel says of a connection."""

from __future__ import annotations

import socket
import struct

# `struct tcp_info` of <linux/tcp.h>: probes sent to a full window and not answered; segments that are not acknowledged;
# milliseconds since data was sent, again perhaps, and since the last acknowledgement, of whatever.
_TCP_INFO_SIZE = 104
_PROBES_AT = 3
_UNACKNOWLEDGED_AT = 24
_SENT_AT = 44
_ACKNOWLEDGEMENT_AT = 56


class Pulse:
    """When the peer's host was last known to be there."""

    __slots__ = ("_heard", "_sock")

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._heard: float | None = None  # None: nobody has looked

    def silent_for(self, now: float) -> float:
        """Seconds since something was sent to which there has been no sign of life; 0 if there is no such thing.

        `now` is always the same stopwatch's.
        """
        if self._sock.family == socket.AF_UNIX:
            return 0.0
        info = self._sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_SIZE)
        (unacknowledged,) = struct.unpack_from("=I", info, _UNACKNOWLEDGED_AT)
        (sent,) = struct.unpack_from("=I", info, _SENT_AT)
        (acknowledgement,) = struct.unpack_from("=I", info, _ACKNOWLEDGEMENT_AT)
        # A peer without room is asked again after a time that grows beyond any silence; until then nobody is silent. Be
        # it by a probe: one alone may get lost, and the second is not answered when the first was half a second ago
        # (tcp_invalid_ratelimit). Or by what it dropped for want of room, and acknowledged that it has got no more.
        answered = info[_PROBES_AT] < 2 and (not unacknowledged or acknowledgement <= sent)
        if answered or self._heard is None:
            self._heard = now
            return 0.0
        self._heard = max(self._heard, now - acknowledgement / 1000)
        return now - self._heard
