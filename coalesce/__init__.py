r"""A transparent pipelining proxy for Redis and Valkey: the theory of operation.

The picture
-----------
::

      clients                       sessions               lanes                      upstream
    c7  GET a  ---> Client  -->  Session(db 0) --+
    c8  GET b  ---> Client  -->  Session(db 0) --+--> Lane(db 0)  unsent | in flight ==== one connection ====> Redis
    c9  GET c  ---> Client  -->  Session(db 3) -----> Lane(db 3)  unsent | in flight ==== one connection ====>
    c10 BLPOP  ---> Client  -->  Session(db 0) -----> Lane, leased            ==== for this one alone ====>
    c11 MONITOR --> Pin     ==================================================== for good =================>

A **session** is a client's conversation. A **lane** is one shared upstream connection of one **identity**: credentials,
database, protocol version. What the sessions of a lane ask for at about the same time leaves as one **batch**; the
replies come back in the same order, and the lane's FIFO knows whose each one is. A session that needs a connection of
its own, because it blocks, is in a transaction or subscribes, is lent one: a **lease** is a lane with one session on
it, and goes on to another once its state is known to be clean again. A **pin** is a lease for good.

Two speeds
----------
A task for each client costs more than twice the work itself. So clients that share lanes have none: all their sockets,
and those of the lanes, are in one epoll, which a single trio task awaits, and everything that happens between two waits
is a plain `def`, in which nothing interleaves. Leases are in the same epoll: lending one moves no socket. Pinned
clients are ordinary structured trio, because what they receive may be endless, and wants backpressure. One hand-off
joins the two worlds (`Client.pin` to `Pin`), with the very sockets and the bytes that were read and not forwarded.

What is large has a lane of its own, where an identity needs one: a reply of 10 MB takes milliseconds, and on the lane
of everybody else all small ones would stand behind it. A large request is seen when it comes; of a session that was
given a large reply, more are expected. Such a session changes lanes when nothing is owed to it (I6), and comes back
after some small replies. On that lane one request is in flight at a time.

Batches clock themselves: what is ready leaves together, and on a short link the next batch waits while one is in
flight. So load makes batches longer and nothing else does; a lone command leaves at once.

What stops it, and who looks at it
----------------------------------
A **pause** holds what has not left and finishes what has been begun, so that the upstream can be replaced meanwhile:
lanes take no batch and nothing is lent; all else piles up within the limits that there are anyway. After it, each lane
has a new connection before it sends again, as the old one may lead to the upstream of before. A **drain** is the end:
nobody new, what was read is answered, by a deadline.

Whoever looks pays for it. A command that takes the usual way is counted nowhere: what became of it follows from what
is counted where something else becomes of one (`core/ledger.py`), a batch costs some additions, and all else is
computed when it is asked for, from one look at the server (`admin/figures.py`). What traces takes the places of what
does not, as subclasses, when a server is made; so nobody asks whether he is traced.

The invariants
--------------
I1   Replies on a lane belong to its requests, in order.
I2   Request bytes and FIFO entry are appended together, with no await and no possible exception between.
I3   Every accepted request gets exactly one of reply, error reply, closed connection, or swallow.
I4   A FIFO entry is never removed early, only swallowed.
I5   Desync, an unexpected push or a lost connection fails the whole lane.
I6   A session has unanswered requests on one connection only: who moves first waits until nothing is owed.
I7   No retry once a byte may have left.
I8   Reply bytes are the upstream's, unaltered; the only bytes that we author are in `core/errors.py`.
I9   Request bytes on a lane are ours: parsed, checked, and packed again.
I10  A cancelled task never removes a FIFO entry nor cuts an upstream write short.

Where to begin reading
----------------------
The pure core, which knows no sockets, no clock and no trio: `core/lane.py` (the FIFO), `core/session.py` (one client's
states), `core/exchange.py` (both together: the way of every request and reply), `core/commands.py` (what each command
needs), `core/identity.py` (what a connection runs as), `core/moves.py` (from one to another), `core/door.py` (clients
that have to authenticate to coalesce first), `core/large.py` (what has a lane of its own), `core/lease.py` (connections
that are lent), `core/leased.py` (what a session does with one), `core/stream.py` (replies that do not pair with
requests), `core/fence.py` (proof that a reply was one), `core/wait.py` (WAIT, on shared connections), `core/own.py`
(what coalesce asks for itself), `core/ends.py` (how a conversation ends), `core/pause.py`, `core/client_state.py` (what
an upstream would hold for a client), `core/held.py` (what counts as a client's own), `core/resp.py` (where a request or
a reply ends), `core/errors.py` (every byte that we author), `core/containment.py` (where a fault of ours ends),
`core/ledger.py` and `core/histogram.py` (what is counted).

The shell around it: `poller.py` (the epoll), `downstream.py` (clients), `listening.py` (listeners and addresses),
`memory.py` (the bound over all clients), `tls.py` (a socket like any other, and certificates), `greeting.py` (clients
in the TLS handshake), `dial.py` (new connections), `passwords.py`, `watched.py` (files that change), `connection.py` (a
lane's connection), `upstream.py` (... and its next), `keepalive.py` (what the kernel finds out by itself), `pulse.py`
and `liveness.py` (whose host is silent), `bytestream.py` and `pin.py` (pinned clients), `server.py` (the tree of tasks,
signals, pause, drain), `faults.py` (our own, said and counted), `logs.py`.

How it is told what to do: `__main__.py`, `config.py` (what a run is told, and why each default), `build.py` (which
coalesce this is), and `cli/`.

For whoever looks at it: `tally.py` (what the shell counts), `trace.py` (transcripts of a live one), and `admin/`.
"""
