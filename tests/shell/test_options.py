"""What is declared of each setting, and names that are none."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest

from coalesce.cli.options import OPTIONS, as_given, plain, settings_in_force, unknown_variables
from coalesce.config import Config, TcpAddress, Upstream, parse_admin, parse_mode, parse_upstream

NOT_ON_THE_COMMAND_LINE = {"hold_below"}


def test_every_setting_is_declared_and_nothing_else():
    fields = {field.name for field in dataclasses.fields(Config)}
    assert set(OPTIONS) == fields - NOT_ON_THE_COMMAND_LINE


def test_a_setting_without_a_default_of_its_own_says_what_happens_without_it():
    for option in OPTIONS.values():
        assert option.default_in_words() != "None", option.flag


URLS = [
    "h:1", "[::1]:6379", "unix:///run/r.sock", "rediss://h:1", "redis://h:1/3", "valkeys://[fe80::1%eth0]:1/2",
    "redis://u:p@h:1", "redis://%40%3a%2f%ff:p@h:1/1", "redis://:p@h:1",
]  # fmt: skip


@pytest.mark.parametrize("url", URLS)
def test_an_upstream_is_shown_as_it_is_given_but_for_its_password(url):
    upstream = parse_upstream(url)
    shown = plain(upstream)
    assert parse_upstream(shown) == dataclasses.replace(upstream, password=None)


def test_values_as_they_are_given():
    config = Config(Upstream(TcpAddress("h", 1)), admin=None, socket_mode=0o60, upstream_silence=1.5)
    shown = settings_in_force(config)
    assert shown["listen"] == ["127.0.0.1:6380"]
    assert shown["upstream-silence"] == 1.5
    assert shown["tls-cert"] is None
    assert (shown["admin"], parse_admin(shown["admin"])) == ("off", None)
    assert (shown["socket-mode"], parse_mode(shown["socket-mode"])) == ("0060", 0o60)
    assert shown["tls-insecure"] is False
    assert as_given(OPTIONS["admin"], TcpAddress("::1", 2)) == "[::1]:2"


def test_no_limit_is_told_in_json_that_others_read():
    shown = settings_in_force(Config(Upstream(TcpAddress("h", 1)), drain_timeout=math.inf))
    assert json.loads(json.dumps(shown, allow_nan=False))["drain-timeout"] == "inf"  # as it is given


OF_A_SERVICE = [
    "COALESCE_SERVICE_HOST", "COALESCE_SERVICE_PORT", "COALESCE_SERVICE_PORT_REDIS", "COALESCE_PORT",
    "COALESCE_PORT_6380_TCP", "COALESCE_PORT_6380_TCP_PROTO", "COALESCE_PORT_6380_TCP_PORT",
    "COALESCE_PORT_6380_TCP_ADDR",
]  # fmt: skip


@pytest.mark.parametrize("name", OF_A_SERVICE)
def test_variables_of_a_service_are_none_of_ours(name):
    assert list(unknown_variables({name: "x"})) == []
    other = name.replace("COALESCE_", "COALESCE_ADMIN_MAIN_", 1)
    assert list(unknown_variables({other: "x", "COALESCE_ADMIN_MAIN_SERVICE_HOST": "10.0.0.1"})) == []


@pytest.mark.parametrize(
    ("name", "said", "known"),
    [
        ("COALESCE_MAX_CLIENT", "COALESCE_MAX_CLIENT", "COALESCE_MAX_CLIENTS"),
        ("COALESCE_LISTEN_PORT", "COALESCE_LISTEN_PORT", "COALESCE_LISTEN"),
        ("COALESCE_CONF", "COALESCE_CONF", "COALESCE_CONFIG"),
        ("COALESCE_UPSTREAM:redis://:hunter2@h", "COALESCE_..", "COALESCE_UPSTREAM"),
    ],
)
def test_an_unknown_variable_is_named_with_the_nearest(name, said, known):
    assert list(unknown_variables({name: "x", "HOME": "/", "COALESCE_UPSTREAM": "h"})) == [(said, known)]


def test_each_settings_variable_is_known():
    assert list(unknown_variables({option.variable: "x" for option in OPTIONS.values()})) == []
