"""Requests per second of the teacher client against other clients, on one core, against the same local endpoint.

    python benchmarks/teacher_client.py --rounds 2
    python benchmarks/teacher_client.py --rounds 2 --openai-python /tmp/peers/openai/bin/python \\
        --litellm-python /tmp/peers/litellm/bin/python --curator-python ... --distilabel-python ...

The endpoint is a process of its own, pinned to the second core; each client is a process of its own, pinned to the first,
in alternation. It answers each chat completion after --latency-ms with 1 KB, and --refuse of the requests with a 429 and
`retry-after: 1`, drawn from a fixed seed. First the endpoint is measured alone, by a client that only writes and counts.

Ours is the whole client as a run uses it: key, budget, marks of what went out, every answer written to the ledger before it
counts, and, as in a run, a quarter more requests at hand than may be in flight. A peer has as many askers as requests in flight:
it has no bound of its own. A peer without a path is skipped, saying so.

Two rates: of the whole run, which begins with a thousand connections and ends with the last pause of a refused request, and
of the middle 80 % of the answers. The ideal is in_flight / latency. What refusals cost is the middle rate with them over
the middle rate without them.

Peers install with pip into environments of their own: openai, litellm, bespokelabs-curator, "distilabel[openai]" requests.
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
    at_hand = in_flight * 5 // 4
    client = LedgerClient(teacher, ledger, concurrency=at_hand, budget_usd=1e6, max_requests=None, where="benchmark")
    system = Message(role="system", content="You write short answers to questions about words. " * 4)
    sampling = SamplingParams(max_tokens=300, temperature=1.0)
    numbers = iter(range(num))
    failed = 0
    times = []

    async def asker():
        nonlocal failed
        for i in numbers:
            question = Message(role="user", content=f"Question {i}: what stands beside the tree?")
            answer = await client.ask(TeacherRequest(messages=(system, question), sampling=sampling, sample_index=i))
            failed += answer.finish_reason == "error"
            times.append(time.perf_counter())

    started, cpu = time.perf_counter(), time.process_time()
    await asyncio.gather(*(asker() for _ in range(at_hand)))
    seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
    await client.aclose()
    ledger.close()
    middle = 0.8 * num / (times[num * 9 // 10] - times[num // 10])
    print(json.dumps({"seconds": seconds, "cpu_seconds": cpu, "failed": failed, "said": said[:5], "middle": middle,
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
    numbers = iter(range(num)); failed = 0; times = []
    async def asker():
        nonlocal failed
        for i in numbers:
            try:
                await client.chat.completions.create(model="mock", max_tokens=300, temperature=1.0, messages=[
                    {"role": "system", "content": "You write short answers to questions about words. " * 4},
                    {"role": "user", "content": f"Question {i}: what stands beside the tree?"}])
            except Exception:
                failed += 1
            times.append(time.perf_counter())
    started, cpu = time.perf_counter(), time.process_time()
    await asyncio.gather(*(asker() for _ in range(in_flight)))
    print(json.dumps({"seconds": time.perf_counter() - started, "cpu_seconds": time.process_time() - cpu, "failed": failed,
        "middle": 0.8 * num / (times[num * 9 // 10] - times[num // 10]), "memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}))
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
due = __import__("collections").deque()
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
                due.append((loop.time() + latency, self.transport))
                if len(due) == 1:
                    loop.call_later(latency, answer)

def answer():
    """All that are due; one timer for all, because the latency is the same."""
    now = loop.time()
    while due and due[0][0] <= now:
        transport = due.popleft()[1]
        if not transport.is_closing():
            transport.write(good)
    if due:
        loop.call_at(due[0][0], answer)

async def main():
    global loop
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Mock, "127.0.0.1", 0, backlog=8192)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()
asyncio.run(main())
'''


ALONE = """
import asyncio, json, sys, time
url, num, in_flight = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
body = json.dumps({"model": "mock", "max_tokens": 300, "temperature": 1.0, "messages": [
    {"role": "system", "content": "You write short answers to questions about words. " * 4},
    {"role": "user", "content": "Question 1: what stands beside the tree?"}]}).encode()
asked = b"POST /v1/chat/completions HTTP/1.1\\r\\nHost: x\\r\\nContent-Length: %d\\r\\n\\r\\n" % len(body) + body

class Raw(asyncio.Protocol):
    def connection_made(self, transport):
        self.transport, self.size = transport, 0
        self.ask()
    def ask(self):
        global left
        left -= 1
        if left >= 0:
            self.transport.write(asked)
    def data_received(self, data):
        global answered
        self.size = self.size or data.index(b"\\r\\n\\r\\n") + 4 + int(data.split(b"content-length: ")[1].split(b"\\r\\n")[0])
        self.size -= len(data)
        if self.size == 0:
            answered += 1
            self.ask()
            if answered == num:
                done.set()

async def main():
    global left, answered, done
    left, answered, done = num, 0, asyncio.Event()
    loop, port = asyncio.get_running_loop(), int(url.split(":")[2].split("/")[0])
    started, cpu = time.perf_counter(), time.process_time()
    await asyncio.gather(*(loop.create_connection(Raw, "127.0.0.1", port) for _ in range(in_flight)))
    await done.wait()
    print(json.dumps({"seconds": time.perf_counter() - started, "cpu_seconds": time.process_time() - cpu, "failed": 0}))
asyncio.run(main())
"""


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


def parse_options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for peer in PEERS:
        parser.add_argument(f"--{peer}-python", help=f"python of an environment that has {peer}; without it, skipped")
    parser.add_argument("--in-flight", type=int, default=1000)
    parser.add_argument("--latency-ms", type=float, default=500)
    parser.add_argument("--requests", type=int, default=30000, help="of our client")
    parser.add_argument("--peer-requests", type=int, default=3000)
    parser.add_argument("--refuse", type=float, default=0.05, help="share of 429s in the second part")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--uvloop", action="store_true", help="run our client on uvloop")
    return parser.parse_args()


PEERS = {"openai": OPENAI, "litellm": LITELLM, "curator": CURATOR, "distilabel": DISTILABEL}


def clients_of(options: argparse.Namespace) -> list[tuple[str, str, str, list[str]]]:
    """(name, python, program, arguments) of everything to measure."""
    runner = "import uvloop\nuvloop.run(main())" if options.uvloop else "asyncio.run(main())"
    clients: list[tuple[str, str, str, list[str]]] = [("tunesmith", sys.executable, OURS.replace("LOOP", runner), [])]
    for name, code in PEERS.items():
        python = getattr(options, f"{name}_python")
        if python is None:
            print(f"{name}: skipped, --{name}-python is not given")
            continue
        clients.append((name, python, code, []))
        if name == "openai":
            clients.append(("openai+aiohttp", python, code, ["aiohttp"]))
    return clients


def measure(
    client: tuple[str, str, str, list[str]], num: int, latency_ms: float, refuse: float, in_flight: int
) -> dict | None:
    """One run of one client against a fresh endpoint, told in a line."""
    name, python, code, extra = client
    cores = sorted(os.sched_getaffinity(0))
    mock, url = start_mock(latency_ms, refuse, cores[-1])
    try:
        measured = run_client(python, code, url, num, in_flight, extra, cores[0])
    finally:
        mock.kill()
        mock.wait()
    if measured is None:
        return None
    measured["rate"] = (num - measured["failed"]) / measured["seconds"]
    middle = f", middle {measured['middle']:7,.0f}" if "middle" in measured else ""
    memory = f", {measured['memory_mb']:,.0f} MB" if "memory_mb" in measured else ""
    print(
        f"  {name:15} {num - measured['failed']:6,} of {num:6,} answered, {measured['rate']:7,.0f} requests/s{middle}, "
        f"{measured['cpu_seconds'] / num * 1e3:.2f} ms CPU each{memory}",
        flush=True,
    )
    for sentence in measured.get("said", []):
        print(f"    it said: {sentence}")
    time.sleep(0.5)
    return measured


def main() -> None:
    options = parse_options()
    clients = clients_of(options)
    print("the endpoint alone, 100 in flight, no latency")
    measure(("raw writes", sys.executable, ALONE, []), 20000, 0.0, 0.0, 100)
    ideal = options.in_flight / options.latency_ms * 1000
    middles: list[float] = []
    for refuse in (0.0, options.refuse):
        print(
            f"{options.in_flight} in flight, {options.latency_ms:g} ms, {refuse:.0%} refused; ideal {ideal:,.0f} requests/s"
        )
        found: dict[str, list[dict]] = {}
        for _ in range(options.rounds):
            for client in clients:
                num = options.requests if client[0] == "tunesmith" else options.peer_requests
                measured = measure(client, num, options.latency_ms, refuse, options.in_flight)
                if measured is not None:
                    found.setdefault(client[0], []).append(measured)
        rates = {name: statistics.median(each["rate"] for each in several) for name, several in found.items()}
        ours = rates.pop("tunesmith")
        middles.append(statistics.median(each["middle"] for each in found["tunesmith"]))
        print(f"  tunesmith: {ours / ideal:.0%} of ideal as a whole, {middles[-1] / ideal:.0%} in the middle")
        for name, rate in rates.items():
            print(f"  tunesmith / {name}: {ours / rate:.1f} x")
    print(
        f"with {options.refuse:.0%} refused: {middles[1] / middles[0]:.0%} of the rate without refusals (middle of the runs)"
    )


if __name__ == "__main__":
    main()
