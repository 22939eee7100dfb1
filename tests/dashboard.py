"""Stands for the dashboard of a Ray head: answers as a test says, over real sockets, and keeps what it was sent."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from aiohttp import web


class Dashboard:
    """What the jobs of a cluster look like from outside."""

    def __init__(self) -> None:
        self.jobs: list[dict[str, Any]] = []
        self.log = ""
        self.cuts: list[int] = []
        """How many characters of the log are told before the connection breaks, of the next connections."""
        self.status: dict[str, int] = {}
        """What is answered instead, by method and path."""
        self.version: Any = {"ray_version": "2.60.0", "version": "4"}
        self.posted: list[dict[str, Any]] = []
        self.packages: list[bytes] = []
        self.hangs = False

    def job(self, name: str, status: str = "RUNNING", **details: Any) -> None:
        known = {"type": "SUBMISSION", "submission_id": name, "status": status, "entrypoint": "x", "start_time": 1000}
        self.jobs = [job for job in self.jobs if job.get("submission_id") != name] + [known | details]

    @web.middleware
    async def refuse(self, request: web.Request, handler: Any) -> web.StreamResponse:
        while self.hangs:
            await asyncio.sleep(0.05)
        if status := self.status.get(f"{request.method} {request.path}"):
            return web.Response(status=status, text="Traceback:\n  in Ray\nValueError: no\n")
        return await handler(request)

    async def tell_version(self, request: web.Request) -> web.Response:
        return web.json_response(self.version)

    async def tell_jobs(self, request: web.Request) -> web.Response:
        return web.json_response(self.jobs)

    async def take_job(self, request: web.Request) -> web.Response:
        self.posted.append(await request.json())
        self.job(self.posted[-1]["submission_id"], "SUCCEEDED")
        return web.json_response({"job_id": "1", "submission_id": self.posted[-1]["submission_id"]})

    async def take_package(self, request: web.Request) -> web.Response:
        self.packages.append(await request.read())
        return web.Response()

    async def lack_package(self, request: web.Request) -> web.Response:
        return web.Response(status=404)

    async def stop_job(self, request: web.Request) -> web.Response:
        self.job(request.match_info["name"], "STOPPED")
        return web.json_response({"stopped": True})

    async def tell_log(self, request: web.Request) -> web.StreamResponse:
        answer = web.WebSocketResponse()
        await answer.prepare(request)
        end = self.cuts.pop(0) if self.cuts else None
        text = self.log[:end]
        for at in range(0, len(text), 7):
            await answer.send_str(text[at : at + 7])
        if end is not None and request.transport:
            request.transport.abort()
        return answer

    def application(self) -> web.Application:
        application = web.Application(middlewares=[self.refuse])
        application.add_routes(
            [
                web.get("/api/version", self.tell_version),
                web.get("/api/jobs/", self.tell_jobs),
                web.post("/api/jobs/", self.take_job),
                web.get("/api/packages/gcs/{name}", self.lack_package),
                web.put("/api/packages/gcs/{name}", self.take_package),
                web.post("/api/jobs/{name}/stop", self.stop_job),
                web.get("/api/jobs/{name}/logs/tail", self.tell_log),
            ]
        )
        return application


@contextmanager
def serving(dashboard: Dashboard) -> Iterator[str]:
    """Serve it from a thread; the address."""
    loop = asyncio.new_event_loop()
    runner = web.AppRunner(dashboard.application(), shutdown_timeout=0.1)

    async def start() -> int:
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        return runner.addresses[0][1]

    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    port = asyncio.run_coroutine_threadsafe(start(), loop).result(10)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        dashboard.hangs = False
        asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()
