"""What the gateway costs: llama.cpp alone against the same engine behind our HTTP front, 8 streams side by side.

    python benchmarks/gateway_overhead.py --model smollm2-135m --rounds 5

Both sides run in one process group in alternation, on the same loaded engine with the same token ids, greedy, so that
the text is the same; the ratio is the median over rounds. The client of the HTTP side is a process of its own, as a
client is. Prints tokens/s of each side, their ratio, and the first-token time the gateway adds.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import orjson

from tunesmith.chat.renderer import Renderer
from tunesmith.errors import EngineError
from tunesmith.events import NullSink
from tunesmith.inference.llama_cpp import LlamaCppEngine
from tunesmith.model.catalog import fetch_model
from tunesmith.protocols import Prompt
from tunesmith.server.run import build_server
from tunesmith.server.served import ServedModel
from tunesmith.server.settings import ServerSettings
from tunesmith.types import SamplingParams


@dataclass
class Round:
    """One side of one round."""

    tokens_per_second: float
    first_token_seconds: float  # median over streams
    text: str  # of the first stream
    num_tokens: int = 0
    cpu_seconds: float = 0.0  # of the process that holds engine and gateway, client not counted


async def engine_alone(engine: LlamaCppEngine, prompts: list[Prompt], num_tokens: int) -> Round:
    """The engine's own stream, read by this process."""
    sampling = SamplingParams(max_tokens=num_tokens)

    async def one(prompt: Prompt) -> tuple[float, int, str]:
        first, text, count = 0.0, [], 0
        start = time.perf_counter()
        async for chunk in engine.stream(prompt, sampling):
            first = first or time.perf_counter() - start
            text.append(chunk.text)
            count = chunk.completion_tokens or count
        return first, count, "".join(text)

    start = time.perf_counter()
    results = await asyncio.gather(*(one(prompt) for prompt in prompts))
    seconds = time.perf_counter() - start
    num_tokens = sum(count for _, count, _ in results)
    first_token = statistics.median(first for first, _, _ in results)
    return Round(num_tokens / seconds, first_token, results[0][2], num_tokens)


async def through_gateway(url: str, prompts: list[Prompt], num_tokens: int) -> Round:
    """The same over HTTP, read by a client process."""
    request = {"url": url, "prompts": [prompt.input_ids for prompt in prompts], "num_tokens": num_tokens}
    client = await asyncio.create_subprocess_exec(
        sys.executable, __file__, "--client", stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    output, _ = await client.communicate(json.dumps(request).encode())
    if client.returncode:
        raise EngineError(f"the client ended with status {client.returncode}")
    return Round(**json.loads(output))


async def run_client() -> Round:
    """Read every stream to its end. aiohttp, so that the client's own cost is small."""
    import aiohttp

    request = json.loads(sys.stdin.read())

    async def one(session: aiohttp.ClientSession, prompt: list[int]) -> tuple[float, int, str]:
        body = {
            "model": "model",
            "prompt": prompt,
            "max_tokens": request["num_tokens"],
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        first, text, count = 0.0, [], 0
        start = time.perf_counter()
        async with session.post(f"{request['url']}/v1/completions", json=body) as answer:
            answer.raise_for_status()
            async for line in answer.content:
                if line.startswith(b"data: {"):
                    first = first or time.perf_counter() - start
                    data = orjson.loads(line[6:])
                    text += [choice["text"] for choice in data["choices"]]
                    count = (data["usage"] or {}).get("completion_tokens", count)
        return first, count, "".join(text)

    async with aiohttp.ClientSession() as session:
        await (await session.get(f"{request['url']}/health")).read()  # the connection is not what is measured
        start = time.perf_counter()
        results = await asyncio.gather(*(one(session, prompt) for prompt in request["prompts"]))
        seconds = time.perf_counter() - start
    num_tokens = sum(count for _, count, _ in results)
    first_token = statistics.median(first for first, _, _ in results)
    return Round(num_tokens / seconds, first_token, results[0][2], num_tokens)


async def measure(arguments: argparse.Namespace) -> None:
    """Alternate the two sides and print what came out."""
    fetched = fetch_model(arguments.model, events=NullSink())
    if fetched.gguf is None:
        raise EngineError(f"{arguments.model} has no GGUF file")
    renderer = Renderer.for_model(fetched.path)
    engine = LlamaCppEngine(
        fetched.gguf, context_length=512, num_slots=arguments.streams, num_threads=arguments.threads
    )
    server = build_server(ServedModel(id="model", renderer=renderer), engine, ServerSettings(port=0))
    serving = asyncio.create_task(server.serve())
    while not server.started or server.config.app.state.gateway.phase == "loading":  # type: ignore[union-attr]
        await asyncio.sleep(0.05)
    text = "Once upon a time there was a bicycle shop number {} that"
    prompts = [Prompt(tuple(renderer.tokenizer(text.format(n))["input_ids"]), ()) for n in range(arguments.streams)]
    await engine_alone(engine, prompts, arguments.tokens)  # warm caches on both sides
    await through_gateway(server.url, prompts, arguments.tokens)
    sides = (
        lambda: engine_alone(engine, prompts, arguments.tokens),
        lambda: through_gateway(server.url, prompts, arguments.tokens),
    )
    ratios: list[float] = []
    added: list[float] = []
    cpu: list[float] = []
    for number in range(arguments.rounds):
        results: dict[int, Round] = {}
        for side in (0, 1) if number % 2 == 0 else (1, 0):
            before = time.process_time()
            results[side] = await sides[side]()
            results[side].cpu_seconds = time.process_time() - before
        first, second = results[0], results[1]
        ratios.append(second.tokens_per_second / first.tokens_per_second)
        added.append(second.first_token_seconds - first.first_token_seconds)
        cpu.append((second.cpu_seconds - first.cpu_seconds) / second.num_tokens)
        print(
            f"round {number + 1}: alone {first.tokens_per_second:7.1f} tok/s, gateway {second.tokens_per_second:7.1f} tok/s,"
            f" ratio {ratios[-1]:.3f}, first token {added[-1] * 1000:+.1f} ms, same text {first.text == second.text}"
        )
    print(
        f"{arguments.streams} streams x {arguments.tokens} tokens: gateway at {statistics.median(ratios):.3f} of the"
        f" engine's tokens/s (median of {arguments.rounds}); first token {statistics.median(added) * 1000:+.1f} ms;"
        f" CPU time per token {statistics.median(cpu) * 1e6:+.0f} us"
    )
    server._drain()
    await serving


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--streams", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--client", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.client:
        sys.stdout.write(json.dumps(asyncio.run(run_client()).__dict__))
    else:
        asyncio.run(measure(arguments))


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))
    main()
