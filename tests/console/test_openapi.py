"""The API does what its document says, whatever it is sent: schemathesis makes the requests."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from typing import Self

import httpx2
import hypercorn.config
import hypercorn.trio
import pytest
import schemathesis
import trio
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis.core.result import Ok
from schemathesis.specs.openapi.checks import positive_data_acceptance, unsupported_method

from console import app
from console.links import sign_in_link
from ledger.directory import Directory
from tests.fakes import postgres
from tests.fakes.console import FACTS, PUBLIC_URL, SECRET, console, sandbox_catalogue

_EXAMPLES = 6
_ACCOUNT = "acme"
# Whose effect is that nobody is signed in any more, or that go on at Stripe.
_NOT_PROMISED = [
    positive_data_acceptance,  # a model that is not served is refused, and no schema knows them
    unsupported_method,
    schemathesis.checks.not_a_server_error,  # below
]
_AWAY = {502, 503}  # of Stripe and the gateway, which are not here
_LEFT_OUT = {("delete", "/session"), ("post", "/accounts/{account}/stripe/webhook")}


class Served:
    """A console on a port, in a thread of its own."""

    def __init__(self, conninfo: str) -> None:
        self._conninfo = conninfo
        self._bound = threading.Event()
        self._stop: tuple[trio.lowlevel.TrioToken, trio.Event]
        self.base_url = ""
        self._thread = threading.Thread(target=trio.run, args=[self._serve])

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._bound.wait(30)
        return self

    def __exit__(self, *_: object) -> None:
        token, stop = self._stop
        token.run_sync_soon(stop.set)
        self._thread.join()

    async def _serve(self) -> None:
        server = replace(FACTS, catalogue=sandbox_catalogue())
        parts = console(self._conninfo, server=server)
        config = hypercorn.config.Config()
        config.bind = ["127.0.0.1:0"]
        stop = trio.Event()
        self._stop = trio.lowlevel.current_trio_token(), stop

        async def serve(*, task_status: trio.TaskStatus[list[str]]) -> None:
            await hypercorn.trio.serve(
                app.build(parts),  # type: ignore[arg-type]  # hypercorn has types of its own
                config,
                shutdown_trigger=stop.wait,
                task_status=task_status,
            )

        async with trio.open_nursery() as nursery:
            (self.base_url,) = await nursery.start(serve)
            self._bound.set()
        await parts.aclose()


@pytest.fixture(scope="module")
def signed_in(postgres_server: postgres.TestServer) -> Iterator[httpx2.Client]:
    """The operator of a gateway with one account."""
    with postgres_server.database() as conninfo:
        with Directory(conninfo, secret=SECRET) as directory:
            directory.create_account(_ACCOUNT, credit=10**9)
            directory.create_project(_ACCOUNT, "web")
            directory.create_key(_ACCOUNT, "web")
        url = sign_in_link(conninfo, PUBLIC_URL, datetime.now(UTC))
        token = url.rpartition("/")[2]
        headers = {"x-farebox-client": "127.0.0.1", "sec-fetch-site": "same-origin"}
        with (
            Served(conninfo) as served,
            httpx2.Client(base_url=served.base_url, headers=headers, timeout=20) as client,
        ):
            answer = client.post("/console/api/session/link", json={"token": token})
            assert answer.status_code == 201, answer.text
            yield client


@settings(
    max_examples=_EXAMPLES,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
)
@given(data=st.data())
def test_every_operation_keeps_to_the_document(
    signed_in: httpx2.Client, data: st.DataObject
) -> None:
    document = signed_in.get("/console/api/openapi.json").json()
    schema = schemathesis.openapi.from_dict(document)
    for found in schema.get_all_operations():
        assert isinstance(found, Ok), found
        operation = found.ok()
        if (operation.method.lower(), operation.path) in _LEFT_OUT:
            continue
        case = data.draw(operation.as_strategy())
        if "account" in case.path_parameters and data.draw(st.booleans()):
            case.path_parameters["account"] = _ACCOUNT
        answer = case.call_and_validate(
            base_url=f"{signed_in.base_url}/console/api".replace("//console", "/console"),
            headers=dict(signed_in.headers),
            cookies=dict(signed_in.cookies),
            excluded_checks=_NOT_PROMISED,
        )
        assert answer.status_code < 500 or answer.status_code in _AWAY, operation.path
