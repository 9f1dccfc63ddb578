"""Where a server itself answers otherwise than it does behind coalesce: see README, "What differs from a direct
connection". What is compared does not say these things to such a server. Everything else is held to the byte.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .processes import Executable


def gets_all(executable: Executable) -> bool:
    """Whether there are no such differences. The tests say everything to these servers, and less to the others."""
    return executable.version < (7, 2)


def share(count: int, executable: Executable) -> int:
    """How many of `count` random conversations the tests hold with a server."""
    return count if gets_all(executable) else count // 3


# What the users of the comparisons authenticate with, and are never refused for.
CREDENTIALS = {
    (b"default", b"sesame"),
    (b"fuzz", b"fuzz-pw"),
    (b"alice", b"alice-pw"),
    (b"bob", b"bob-pw"),
}


def drops_auth_errors(executable: Executable) -> bool:
    """A failed AUTH, or HELLO with AUTH, is not answered where another reply has not been written yet: behind others
    in one write, and within EXEC. Redis 7.2 to 8 (redis/redis#15640).
    """
    return executable.product == "Redis" and executable.version >= (7, 2)


def marks_writes_only(executable: Executable) -> bool:
    """WAIT speaks of the connection's last *replicated* command, so coalesce sends SWAPDB before it: who may not do
    that is told so. Since 7.2, of both products.
    """
    return executable.version >= (7, 2)


def reads_its_own_way(executable: Executable) -> bool:
    """A malformed request is read otherwise than Redis 6.2 to 8 do, whose way is coalesce's. Valkey 9."""
    return executable.product == "Valkey" and executable.version >= (9,)


def ignores_bad_input_behind_blocking(executable: Executable) -> bool:
    """A malformed request that was read with one that blocks is neither answered, nor closes the connection: a protocol
    error is looked for where bytes are read, not where a client goes on (seen: Redis 8.2).
    """
    return executable.product == "Redis" and executable.version >= (8,)


def crashes_at_function_flush(executable: Executable) -> bool:
    """FUNCTION FLUSH ends the server when a function has called a command with an argument that is nil (seen: Redis
    8.2.3, SIGSEGV in freeClient).
    """
    return executable.product == "Redis" and executable.version >= (8,)


def may_fail_to_authenticate(request: tuple[bytes, ...]) -> bool:
    """AUTH, or HELLO with AUTH, with anything but the credentials of a user there is."""
    name, *arguments = request[0].upper(), *request[1:]
    if name == b"HELLO":
        at = next((at for at, word in enumerate(arguments) if word.upper() == b"AUTH"), len(arguments))
        credentials = arguments[at + 1 : at + 3]
        return bool(arguments[at:]) and tuple(credentials) not in CREDENTIALS
    return name == b"AUTH" and tuple([b"default", *arguments][-2:]) not in CREDENTIALS
