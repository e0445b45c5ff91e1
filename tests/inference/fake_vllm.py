"""A package `vllm` whose server speaks the recorded protocol of vLLM 0.32 on a socket, without a model.

The first token of a prompt says what happens: 1 answers, 2 answers slowly, 3 breaks off and dies, 4 refuses with 400,
5 refuses a grammar inside the stream.
"""

from __future__ import annotations

from pathlib import Path

_SERVER = """
import asyncio, json, os, pathlib, sys
from aiohttp import web

arguments = dict(zip(sys.argv[1::2], sys.argv[2::2]))
record = pathlib.Path(os.environ["FAKE_VLLM_RECORD"])
if os.environ.get("FAKE_VLLM_FAULT"):
    print("ValueError: " + os.environ["FAKE_VLLM_FAULT"], file=sys.stderr)
    sys.exit(3)
child = os.fork()  # vLLM too has worker processes
if child == 0:
    import time
    while True:
        time.sleep(60)
record.with_suffix(".pid").write_text(f"{os.getpid()} {child}")

def event(text, finish=None, tokens=None):
    logprobs = None
    if tokens:
        names = [f"token_id:{token}" for token in tokens]
        logprobs = {"tokens": names, "token_logprobs": [-0.5] * len(names), "text_offset": [0] * len(names),
                    "top_logprobs": [{name: -0.5, "token_id:1": -2.0} for name in names]}
    choice = {"index": 0, "text": text, "logprobs": logprobs, "finish_reason": finish, "stop_reason": None}
    return {"id": "cmpl-1", "object": "text_completion", "model": "model", "choices": [choice], "usage": None}

async def completions(request):
    if request.headers.get("Authorization") != "Bearer " + os.environ["VLLM_API_KEY"]:
        return web.json_response({"error": "Unauthorized"}, status=401)
    body = await request.json()
    record.write_text(json.dumps({"body": body, "arguments": arguments}))
    kind = body["prompt"][0]
    if kind == 4:
        return web.json_response({"error": {"message": "the prompt is odd", "type": "BadRequestError", "code": 400}}, status=400)
    answer = web.StreamResponse(headers={"content-type": "text/event-stream"})
    await answer.prepare(request)
    async def send(data):
        await answer.write(b"data: " + json.dumps(data).encode() + b"\\n\\n")
    if kind == 5:
        await send({"error": {"message": "Grammar error: Unimplemented keys", "type": "BadRequestError", "code": 400}})
        return answer
    wanted = body.get("logprobs") is not None
    try:
        if kind == 2:
            for _ in range(1000):
                await send(event("x"))
                await asyncio.sleep(0.01)
        await send(event("", tokens=[4] if wanted else None))
        await send(event("\\U0001f389", tokens=[5, 6] if wanted else None))
        if kind == 3:
            os._exit(9)
        await send(event("", "stop", tokens=[0] if wanted else None))
    except (ConnectionResetError, asyncio.CancelledError):
        record.with_suffix(".aborted").write_text("yes")
        raise
    usage = {"prompt_tokens": len(body["prompt"]), "completion_tokens": 4, "total_tokens": 5,
             "prompt_tokens_details": {"cached_tokens": 1}}
    await send({"id": "cmpl-1", "object": "text_completion", "model": "model", "choices": [], "usage": usage})
    await answer.write(b"data: [DONE]\\n\\n")
    return answer

async def health(_request):
    return web.Response(status=200)

app = web.Application()
app.router.add_get("/health", health)
app.router.add_post("/v1/completions", completions)
web.run_app(app, path=arguments["--uds"], print=None)
"""


def write_package(folder: Path) -> None:
    """Put the fake package into a folder for PYTHONPATH."""
    package = folder / "vllm" / "entrypoints" / "openai"
    package.mkdir(parents=True)
    for place in (package, package.parent, package.parent.parent):
        (place / "__init__.py").touch()
    (package / "api_server.py").write_text(_SERVER, encoding="utf-8")
