"""Programs that call tools: the official Python client, in front of an app or of a gateway."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import httpx2
from mcp import Client
from mcp.client.streamable_http import streamable_http_client
from mcp_types import CallToolResult, TextContent

TOOLS = {
    "chat_completion",
    "get_balance",
    "list_models",
    "list_api_keys",
    "create_api_key",
    "revoke_api_key",
    "get_usage",
}
ANSWER_SECONDS = 60.0


class ToolFailed(Exception):
    """A tool refused; the message is what a model would read."""


@dataclass
class Toolbox:
    """A connected client."""

    client: Client

    async def call(self, tool: str, **arguments: object) -> dict[str, object]:
        """The structured result of a call. Raises ToolFailed."""
        result = await self.client.call_tool(tool, arguments)
        assert isinstance(result, CallToolResult)
        if result.is_error:
            raise ToolFailed(text_of(result))
        assert isinstance(result.structured_content, dict)
        return result.structured_content

    async def rows(self, name: str, tool: str, **arguments: object) -> list[dict[str, object]]:
        """The objects that a call's result lists under `name`."""
        found = (await self.call(tool, **arguments))[name]
        assert isinstance(found, list)
        return found

    async def refusal(self, tool: str, **arguments: object) -> str:
        """Why a call is refused."""
        result = await self.client.call_tool(tool, arguments)
        assert isinstance(result, CallToolResult)
        assert result.is_error, result
        return text_of(result)


def text_of(result: CallToolResult) -> str:
    """The text of a result."""
    return "".join(part.text for part in result.content if isinstance(part, TextContent))


@asynccontextmanager
async def toolbox(http: httpx2.AsyncClient, url: str, mode: str = "auto") -> AsyncIterator[Toolbox]:
    """Connected through this HTTP client, which says who calls."""
    transport = streamable_http_client(url, http_client=http)
    async with Client(transport, mode=mode) as client:
        yield Toolbox(client)


@asynccontextmanager
async def toolbox_at(base_url: str, token: str, mode: str = "auto") -> AsyncIterator[Toolbox]:
    """Connected to a gateway with a key or a session token."""
    headers = {"authorization": f"Bearer {token}"}
    async with (
        httpx2.AsyncClient(headers=headers, timeout=ANSWER_SECONDS) as http,
        toolbox(http, f"{base_url}/mcp", mode) as box,
    ):
        yield box
