"""What a hot read is measured against: the same bytes, sent by the least that each framework needs for it.

`fastapi`: a route that checks a hashed key in a dictionary and returns prebuilt bytes. `starlette`: a plain route that
checks nothing. Both on uvicorn, with the same settings as keytally's server but for what keytally adds.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Annotated

import uvicorn
from fastapi import FastAPI, Header, Response
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.routing import Route

PATH = "/v1/analytics/api-keys/daily/{org_id}"


def fastapi_app(bodies: dict[str, bytes], keys: dict[str, str]) -> FastAPI:
    """bodies: the answer of each organization. keys: organization by the SHA-256 of its key."""
    app = FastAPI(openapi_url=None)

    @app.get(PATH)
    async def daily(org_id: str, year: int, month: int, x_api_key: Annotated[str | None, Header()] = None) -> Response:
        organization = keys.get(hashlib.sha256((x_api_key or "").encode()).hexdigest())
        if organization is None:
            return Response(status_code=401)
        if organization != org_id or (year, month) != (2025, 11):
            return Response(status_code=403)
        return Response(bodies[org_id], media_type="application/json")

    return app


def starlette_app(bodies: dict[str, bytes]) -> Starlette:
    """bodies: the answer of each organization."""

    async def daily(request: Request) -> Response:
        return Response(bodies[request.path_params["org_id"]], media_type="application/json")

    return Starlette(routes=[Route(PATH, daily)])


def main(kind: str, port: int, answers: Path) -> None:
    """Serve on `port`. answers: a JSON file of {organization: {"key", "body"}}."""
    known = json.loads(answers.read_text(encoding="utf-8"))
    bodies = {organization: one["body"].encode() for organization, one in known.items()}
    keys = {hashlib.sha256(one["key"].encode()).hexdigest(): organization for organization, one in known.items()}
    app = fastapi_app(bodies, keys) if kind == "fastapi" else starlette_app(bodies)
    uvicorn.run(app, port=port, http="httptools", loop="asyncio", ws="none", access_log=False, log_level="warning")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]))
