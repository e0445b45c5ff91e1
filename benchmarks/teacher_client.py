"""Requests per second of the teacher client against other clients, on one core, against the same local endpoint.

    python benchmarks/teacher_client.py --rounds 2
    python benchmarks/teacher_client.py --rounds 2 --openai-python /tmp/peers/openai/bin/python \\
        --litellm-python /tmp/peers/litellm/bin/python --curator-python ... --distilabel-python ...

The endpoint is a process of its own, pinned to the second core; each client is a process of its own, pinned to the first,
in alternation. It answers each chat completion after --latency-ms with 1 KB, and --refuse of the requests with a 429 and
`retry-after: 1`, drawn from a fixed seed. Ours is the whole client as a run uses it: key, budget, marks of what went out,
and every answer written to the ledger before it counts. A peer without a path is skipped, saying so.

The ideal rate is in_flight / latency. Peers install with pip into environments of their own:
openai, litellm, bespokelabs-curator, "distilabel[openai]" requests.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

OURS = """
import asyncio, json, sys, time, resource
from pathlib import Path
from tunesmith.protocols import Price
from tunesmith.teachers.ledger import Ledger, LedgerClient
from tunesmith.teachers.openai import Endpoint, OpenAITeacher
from tunesmith.types import Message, SamplingParams, TeacherRequest

url, num, in_flight, folder = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4])

async def main():
    said = []
    teacher = OpenAITeacher(model="mock", endpoints=[Endpoint(url, "sk-x", Price(0.15, 0.6))], concurrency=in_flight,
        timeout_seconds=120, max_retries=20, requests_per_minute=None, tokens_per_minute=None, notify=said.append)
    ledger = Ledger(folder / "answers.jsonl")
    client = LedgerClient(teacher, ledger, concurrency=in_flight, budget_usd=1e6, max_requests=None, where="benchmark")
    system = Message(role="system", content="You write short answers to questions about words. " * 4)
    sampling = SamplingParams(max_tokens=300, temperature=1.0)
    numbers = iter(range(num))
    failed = 0

    async def asker():
        nonlocal failed
        for i in numbers:
            question = Message(role="user", content=f"Question {i}: what stands beside the tree?")
            answer = await client.ask(TeacherRequest(messages=(system, question), sampling=sampling, sample_index=i))
            failed += answer.finish_reason == "error"

    started, cpu = time.perf_counter(), time.process_time()
    await asyncio.gather(*(asker() for _ in range(in_flight)))
    seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
    await client.aclose()
    ledger.close()
    print(json.dumps({"seconds": seconds, "cpu_seconds": cpu, "failed": failed, "said": said[:5],
        "memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}))

LOOP
"""

OPENAI = """
import asyncio, json, sys, time, resource
from openai import AsyncOpenAI
try:
    from openai import DefaultAioHttpClient
    http = {"http_client": DefaultAioHttpClient()} if "aiohttp" in sys.argv else {}
except ImportError:
    http = {}
url, num, in_flight = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])

async def main():
    client = AsyncOpenAI(base_url=url, api_key="sk-x", max_retries=20, timeout=120, **http)
    numbers = iter(range(num)); failed = 0
    async def asker():
        nonlocal failed
        for i in numbers:
            try:
                await client.chat.completions.create(model="mock", max_tokens=300, temperature=1.0, messages=[
                    {"role": "system", "content": "You write short answers to questions about words. " * 4},
                    {"role": "user", "content": f"Question {i}: what stands beside the tree?"}])
            except Exception:
                failed += 1
    started, cpu = time.perf_counter(), time.process_time()
    await asyncio.gather(*(asker() for _ in range(in_flight)))
    print(json.dumps({"seconds": time.perf_counter() - started, "cpu_seconds": time.process_time() - cpu, "failed": failed,
        "memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}))
asyncio.run(main())
"""

LITELLM = (
    OPENAI.replace("from openai import AsyncOpenAI\n", "import litellm\n")
    .replace('client = AsyncOpenAI(base_url=url, api_key="sk-x", max_retries=20, timeout=120, **http)', "pass")
    .replace(
        'client.chat.completions.create(model="mock",',
        'litellm.acompletion(model="openai/mock", api_base=url, api_key="sk-x", num_retries=20, timeout=120,',
    )
)

CURATOR = """
import json, sys, time, resource, os, contextlib
url, num, in_flight, folder = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
os.environ.update(OPENAI_API_KEY="sk-x", CURATOR_CACHE_DIR=folder, TELEMETRY_ENABLED="0", CURATOR_DISABLE_RICH_DISPLAY="1")
import importlib.util
from pathlib import Path
tokenizers = Path(importlib.util.find_spec("litellm").origin).parent / "litellm_core_utils" / "tokenizers"
os.environ["TIKTOKEN_CACHE_DIR"] = str(tokenizers)  # or it fetches a file at run time
from bespokelabs import curator
class Asker(curator.LLM):
    def prompt(self, row):
        return [{"role": "system", "content": "You write short answers to questions about words. " * 4},
                {"role": "user", "content": f"Question {row['i']}: what stands beside the tree?"}]
    def parse(self, row, response):
        return {"i": row["i"], "answer": response}
with contextlib.redirect_stdout(sys.stderr):
    asker = Asker(model_name="gpt-4o-mini", backend="openai", generation_params={"max_tokens": 300, "temperature": 1.0},
        backend_params={"base_url": url, "max_requests_per_minute": 10**7, "max_tokens_per_minute": 10**10,
            "max_concurrent_requests": in_flight, "max_retries": 20})
    started, cpu = time.perf_counter(), time.process_time()
    rows = asker([{"i": i} for i in range(num)])
    seconds = time.perf_counter() - started
rows = getattr(rows, "dataset", rows)
print(json.dumps({"seconds": seconds, "cpu_seconds": time.process_time() - cpu, "failed": num - len(rows),
    "memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}))
"""

DISTILABEL = """
import json, sys, time, resource, contextlib
url, num, in_flight = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
from distilabel.models import OpenAILLM
from distilabel.pipeline import Pipeline
from distilabel.steps import LoadDataFromDicts
from distilabel.steps.tasks import TextGeneration
def main():
    with contextlib.redirect_stdout(sys.stderr):
        with Pipeline(name="mock") as pipeline:
            rows = LoadDataFromDicts(batch_size=in_flight, data=[
                {"instruction": f"Question {i}: what stands beside the tree?"} for i in range(num)])
            llm = OpenAILLM(model="mock", base_url=url, api_key="sk-x", max_retries=20, timeout=120,
                generation_kwargs={"max_new_tokens": 300, "temperature": 1.0})
            rows >> TextGeneration(llm=llm, input_batch_size=in_flight,
                system_prompt="You write short answers to questions about words. " * 4)
        started = time.perf_counter()
        made = pipeline.run(use_cache=False)
        seconds = time.perf_counter() - started
    answers = made["default"]["train"]["generation"]
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    print(json.dumps({"seconds": seconds, "cpu_seconds": usage.ru_utime + usage.ru_stime,
        "failed": num - sum(a is not None for a in answers), "memory_mb": usage.ru_maxrss / 1024}))
if __name__ == "__main__":
    main()
"""

MOCK = '''
"""Answers any POST with 1 KB after a while. A bare protocol, so that it is never the slow side."""
import asyncio, json, random, sys
latency, refuse = float(sys.argv[1]) / 1000, float(sys.argv[2])
rng = random.Random(7)
body = json.dumps({"id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "mock",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "word " * 160}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 60, "completion_tokens": 160, "total_tokens": 220}}).encode()
head = b"HTTP/1.1 200 OK\\r\\ncontent-type: application/json\\r\\ncontent-length: %d\\r\\n"
limits = b"x-ratelimit-limit-requests: 10000000\\r\\nx-ratelimit-remaining-requests: 9999999\\r\\n"
good = head % len(body) + limits + b"\\r\\n" + body
words = b'{"error":{"message":"slow down","code":"rate_limit_exceeded"}}'
bad = (b"HTTP/1.1 429 Too Many Requests\\r\\ncontent-type: application/json\\r\\nretry-after: 1\\r\\ncontent-length: %d\\r\\n\\r\\n"
    % len(words)) + words

class Mock(asyncio.Protocol):
    def connection_made(self, transport):
        self.transport, self.data = transport, b""
    def data_received(self, data):
        self.data += data
        while True:
            end = self.data.find(b"\\r\\n\\r\\n")
            if end < 0:
                return
            header = self.data[:end].lower()
            place = header.find(b"content-length:")
            size = int(header[place + 15:].split(b"\\r\\n", 1)[0]) if place >= 0 else 0
            if len(self.data) < end + 4 + size:
                return
            self.data = self.data[end + 4 + size:]
            if rng.random() < refuse:
                self.transport.write(bad)
            else:
                loop.call_later(latency, self.answer)
    def answer(self):
        if not self.transport.is_closing():
            self.transport.write(good)

async def main():
    global loop
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Mock, "127.0.0.1", 0, backlog=8192)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()
asyncio.run(main())
'''


def run_client(python: str, code: str, url: str, num: int, in_flight: int, extra: list[str], core: int) -> dict | None:
    """One client in a process of its own; what it measured, or None where it broke or took too long."""
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / "client.py"
        script.write_text(code)
        environment = {
            **os.environ,
            "LITELLM_LOCAL_MODEL_COST_MAP": "True",
            "NO_PROXY": "127.0.0.1",
            "HF_HUB_OFFLINE": "1",
        }
        command = ["taskset", "-c", str(core), python, str(script), url, str(num), str(in_flight), folder, *extra]
        try:
            done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=240)
        except subprocess.TimeoutExpired:
            print(f"    no end within 240 s: {python}")
            return None
    lines = [line for line in done.stdout.splitlines() if line.startswith('{"seconds"')]
    if not lines:
        print(f"    broke: {done.stderr.strip().splitlines()[-1:]}")
        return None
    return json.loads(lines[-1])


def start_mock(latency_ms: float, refuse: float, core: int) -> tuple[subprocess.Popen[str], str]:
    """The endpoint, and its base_url."""
    command = ["taskset", "-c", str(core), sys.executable, "-c", MOCK, str(latency_ms), str(refuse)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    return process, f"http://127.0.0.1:{process.stdout.readline().strip()}/v1"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for peer in ("openai", "litellm", "curator", "distilabel"):
        parser.add_argument(f"--{peer}-python", help=f"python of an environment that has {peer}; without it, skipped")
    parser.add_argument("--in-flight", type=int, default=1000)
    parser.add_argument("--latency-ms", type=float, default=500)
    parser.add_argument("--requests", type=int, default=15000, help="of our client")
    parser.add_argument("--peer-requests", type=int, default=3000)
    parser.add_argument("--refuse", type=float, default=0.05, help="share of 429s in the second part")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--uvloop", action="store_true", help="run our client on uvloop")
    options = parser.parse_args()
    runner = "import uvloop\nuvloop.run(main())" if options.uvloop else "asyncio.run(main())"
    clients: list[tuple[str, str, str, list[str]]] = [("tunesmith", sys.executable, OURS.replace("LOOP", runner), [])]
    peers = {"openai": OPENAI, "litellm": LITELLM, "curator": CURATOR, "distilabel": DISTILABEL}
    for name, code in peers.items():
        python = getattr(options, f"{name}_python")
        if python is None:
            print(f"{name}: skipped, --{name}-python is not given")
            continue
        clients.append((name, python, code, []))
        if name == "openai":
            clients.append(("openai+aiohttp", python, code, ["aiohttp"]))
    cores = sorted(os.sched_getaffinity(0))
    ideal = options.in_flight / options.latency_ms * 1000
    for refuse in (0.0, options.refuse):
        print(
            f"{options.in_flight} in flight, {options.latency_ms:g} ms, {refuse:.0%} refused; ideal {ideal:,.0f} requests/s"
        )
        rates: dict[str, list[float]] = {}
        for _ in range(options.rounds):
            for name, python, code, extra in clients:
                num = options.requests if name == "tunesmith" else options.peer_requests
                mock, url = start_mock(options.latency_ms, refuse, cores[-1])
                try:
                    measured = run_client(python, code, url, num, options.in_flight, extra, cores[0])
                finally:
                    mock.kill()
                    mock.wait()
                if measured is None:
                    continue
                answered = num - measured["failed"]
                rates.setdefault(name, []).append(answered / measured["seconds"])
                print(
                    f"  {name:15} {answered:6,} of {num:6,} answered, {rates[name][-1]:7,.0f} requests/s "
                    f"({rates[name][-1] / ideal:4.0%} of ideal), {measured['cpu_seconds'] / num * 1e3:.2f} ms CPU each, "
                    f"{measured['memory_mb']:,.0f} MB"
                )
                time.sleep(0.5)
        ours = statistics.median(rates.get("tunesmith", [0.0]))
        for name, values in rates.items():
            if name != "tunesmith":
                print(f"  tunesmith / {name}: {ours / statistics.median(values):.1f} x")


if __name__ == "__main__":
    main()
