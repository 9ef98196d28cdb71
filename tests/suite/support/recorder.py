"""A server on ComfyUI's own HTTP stack that remembers what it read. Prints its port."""

import asyncio
import json

from aiohttp import web

seen = []


async def handle(request):
    if request.headers.get("User-Agent", "").startswith("comfygate/"):
        return web.json_response({"queue_running": [], "queue_pending": []})
    if request.path == "/recorded":
        body = json.dumps(seen)
        seen.clear()
        return web.Response(text=body)
    # A body that breaks off ends here: no handler of ComfyUI acts before it has read all of it.
    body = (await request.read()).decode("latin-1")
    seen.append(
        {
            "method": request.method,
            "path": request.path,
            "raw": request.raw_path,
            "headers": [[name.lower(), value] for name, value in request.headers.items()],
            "body": body,
        }
    )
    return web.json_response({"ok": True})


async def main():
    app = web.Application(client_max_size=1 << 30)
    app.router.add_route("*", "/{tail:.*}", handle)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    print(runner.addresses[0][1], flush=True)
    await asyncio.Event().wait()


asyncio.run(main())
