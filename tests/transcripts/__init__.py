"""Conversations written down, and played against the pure core and over real sockets.

    c1 >> GET k               client 1 sends a request                 (the first line of a client connects it)
    u0 << GET k               upstream connection 0 receives it
    u0 >> $1 v                ... and replies
    c1 << $1 v                client 1 receives exactly these bytes
    c1 departs                it resets the connection                 c1 ends    it sends no more, and still reads
    c1 closed                 it finds its connection closed
    u1 connects - db=3 resp2  a new upstream connection is made to run as this identity, and stands
    u1 refuses -ERR no        ... or is refused
    u0 lost                   it is cut                                u0 connects    and here again
    u1 closed                 coalesce has closed it
    c1 pinned u1              client 1 has this connection for good
    admin pauses              what has not left is held                admin resumes  and goes on, on new connections

A request is words, sent as an array of bulk strings. A reply is one line for the types that are a line (`+OK`, `-ERR no
such key`, `:3`); bulk strings are `$` length, a space and so many characters; aggregates are followed by their elements
(`*2 $1 a :7`). A Python bytes literal stands for itself anywhere: b'*1\\r\\n'. Connection u0 stands from the beginning.
`options lane_limit=4` comes first; with `whole=1` the bytes are not cut, with `primary=1` the upstream says that it is
one: then it is asked again, by a HELLO, when a session is about to use another connection. At the end nobody may have
received anything more than was written down.
"""
