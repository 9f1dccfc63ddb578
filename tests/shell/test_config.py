"""What is an address, and what is none."""

from __future__ import annotations

import pytest

from coalesce.config import TcpAddress, parse_address, parse_upstream

ADDRESSES = {
    "127.0.0.1:6380": ("127.0.0.1", 6380),
    "[::1]:6380": ("::1", 6380),
    "[::FFFF:127.0.0.1]:6380": ("::ffff:127.0.0.1", 6380),
    "[fe80::1%eth0]:6380": ("fe80::1%eth0", 6380),
    "Redis.Example.:65535": ("redis.example.", 65535),
    "my_redis-1:1": ("my_redis-1", 1),
    f"{'a' * 63}.b:1": (f"{'a' * 63}.b", 1),
    "\u00e9.example:1": ("\u00e9.example", 1),
}
NONE = [
    ":::1", "::1:6380", "[::1", "::1]:1", "[::1]x:1", "x[::1]:1", "[]:1", "[:]:1", "[127.0.0.1]:1", "[v1.x]:1", "[a]:1",
    "a..b:1", ".a:1", ".:1", f"{'a' * 64}.b:1", f"{chr(0xe9) * 60}:1", "h:65536", "h:-1", "h:+1", "h:1_0", "h: 1",
    "h:1 ", "h:\u0663", "h:1:2", "h:1/", "h:1#x", "h:1?x", "@h:1", "h;x:1", "h,i:1", "h\0:1", ":1", "",
]  # fmt: skip


@pytest.mark.parametrize("text", ADDRESSES)
def test_an_address(text: str) -> None:
    expected = TcpAddress(*ADDRESSES[text])
    assert parse_address(text) == expected
    assert parse_upstream(text).address == expected
    upstream = parse_upstream(f"redis://user:secret@{text}/3")
    assert (upstream.address, upstream.username, upstream.password, upstream.database) == (
        expected, b"user", b"secret", 3,
    )  # fmt: skip
    assert parse_address(str(expected)) == expected


@pytest.mark.parametrize("text", NONE)
def test_no_address(text: str) -> None:
    with pytest.raises(ValueError, match="none of host:port"):
        parse_address(text)
    with pytest.raises(ValueError, match="the upstream is to be"):
        parse_upstream(text)


@pytest.mark.parametrize("text", [text for text in NONE if not text.startswith("@") and "/" not in text])
def test_no_address_in_a_url(text: str) -> None:
    with pytest.raises(ValueError, match="the upstream is to be"):
        parse_upstream(f"redis://user:secret@{text}")


def test_the_port_0_is_for_listeners() -> None:
    assert parse_address("localhost:0") == TcpAddress("localhost", 0)
    for text in ("localhost:0", "redis://localhost:0", "rediss://localhost:0/1"):
        with pytest.raises(ValueError, match="the upstream is to be"):
            parse_upstream(text)


def test_the_port_of_an_upstream_may_be_left_out() -> None:
    for text in ("[::1]", "[::1]:", "redis://[::1]", "redis://[::1]/", "valkeys://[::1]:/"):
        assert parse_upstream(text).address == TcpAddress("::1", 6379)
    with pytest.raises(ValueError, match="none of host:port"):
        parse_address("[::1]")
