"""A wrong password, which changes nothing: neither who the client is, nor what it is in the middle of."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.system.wire import pack

from .run import PASSWORD, USERS
from .speaker import Exchange

if TYPE_CHECKING:
    from .client import Client
    from .speaker import Helper


async def wrong_password(client: Client, helper: Helper) -> None:
    """Alone in its write: Redis from 7.2 on drops the reply in the middle of others (redis/redis#15640)."""
    del helper
    tried = f"not {PASSWORD}" if client.chance.random() < 0.5 else client.secret()
    refused = Exchange(pack("AUTH", client.chance.choice(USERS), tried), client.run.texts.wrong_password)
    await client.step("refused", refused)
    await client.converse([client.echo(), client.get(), client.get_name(), client.foreign()])
