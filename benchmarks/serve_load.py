"""Load on `samdiffsr serve`: many clients, slow ones and half uploads among them.  python benchmarks/serve_load.py

    python benchmarks/serve_load.py --clients 100 --seconds 60 --side 24

Every client sends the same small picture again and again; a 503 is waited out, as its Retry-After says, and counted. Beside
them some clients send a header drop by drop and never finish it, and some send half a picture. Prints how many requests were
answered and lost, latencies (of pictures, and of /healthz meanwhile), and the server's memory (Linux). Needs the extra dev.
"""

import argparse
import asyncio
import io
import random
import statistics
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import httpx2
import numpy as np
from PIL import Image


def picture(side: int) -> bytes:
    """Noise as PNG."""
    buffer = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def resident(process: int) -> float:
    """Memory in MiB."""
    for line in Path(f"/proc/{process}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError("no VmRSS")


async def client(http: httpx2.AsyncClient, content: bytes, end: float, ends: Counter, seconds: list[float]) -> None:
    """One client until the time is over; a request under way is still awaited."""
    while time.monotonic() < end:
        started = time.monotonic()
        try:
            answer = await http.post("/v1/upscale", files={"file": ("a.png", content)})
        except httpx2.HTTPError as error:
            ends[f"lost: {type(error).__name__}"] += 1
            continue
        ends[str(answer.status_code)] += 1
        if answer.status_code == 200:
            seconds.append(time.monotonic() - started)
        elif answer.status_code == 503:
            await asyncio.sleep(random.uniform(0.5, 1) * int(answer.headers["retry-after"]))


async def bad_client(port: int, end: float, words: bytes, ends: Counter) -> None:
    """A client that sends one byte a second after its first words; started again when the server drops it."""
    while time.monotonic() < end:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(words)
        try:
            while time.monotonic() < end:
                writer.write(b"x")
                await writer.drain()
                if await asyncio.wait_for(asyncio.shield(reader.read(1)), 1) == b"":
                    break
        except TimeoutError:
            pass
        except OSError:
            ends["bad clients sent away"] += 1
        writer.close()


async def watch(http: httpx2.AsyncClient, process: int, end: float, health: list[float], memory: list[float]) -> None:
    """Once a second: how long /healthz takes, and the memory."""
    while time.monotonic() < end:
        started = time.monotonic()
        await http.get("/healthz")
        health.append(time.monotonic() - started)
        memory.append(resident(process))
        await asyncio.sleep(1)


async def load(address: str, process: int, options: argparse.Namespace) -> None:
    """All clients at once, and the figures."""
    content, port, end = picture(options.side), int(address.rpartition(":")[2]), time.monotonic() + options.seconds
    ends, seconds, health, memory = Counter(), [], [], []
    half = (
        b"POST /v1/upscale HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000\r\n"
        b"Content-Type: multipart/form-data; boundary=b\r\n\r\n"
        b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.png"\r\n\r\n'
    )
    words = [b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX-Slow: ", half]
    limits = httpx2.Limits(max_connections=None)
    async with (
        httpx2.AsyncClient(base_url=address, timeout=600, limits=limits) as http,
        httpx2.AsyncClient(base_url=address, timeout=60) as watcher,
    ):
        await http.post("/v1/upscale", files={"file": ("a.png", content)})
        await asyncio.gather(
            *(client(http, content, end, ends, seconds) for _ in range(options.clients)),
            *(bad_client(port, end, words[number % 2], ends) for number in range(options.bad)),
            watch(watcher, process, end, health, memory),
        )
    lost = sum(
        count for name, count in ends.items() if name.startswith("lost") or (name.startswith("5") and name != "503")
    )
    print(f"{options.clients} clients and {options.bad} bad ones for {options.seconds} s: {dict(ends)}, {lost} lost")
    print(f"pictures: {len(seconds) / options.seconds:.1f} a second, {quantiles(seconds)}")
    print(f"/healthz meanwhile: {quantiles(health)}")
    middle = len(memory) // 2
    first, last = statistics.mean(memory[middle // 2 : middle]), statistics.mean(memory[middle:])
    print(f"memory in MiB: second quarter {first:.0f}, second half {last:.0f}, most {max(memory):.0f}")


def quantiles(seconds: list[float]) -> str:
    """Median, 95 % and largest."""
    ordered = sorted(seconds)
    half, most = ordered[len(ordered) // 2], ordered[-1]
    return f"median {half:.3f} s, 95 % {ordered[int(0.95 * (len(ordered) - 1))]:.3f} s, most {most:.3f} s"


def main() -> None:
    """Start a server, load it, end it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=100)
    parser.add_argument("--bad", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--side", type=int, default=24, help="of the picture, in pixels")
    parser.add_argument("--queue", type=int, default=16)
    parser.add_argument("-m", "--model", default="default")
    options = parser.parse_args()
    command = [
        sys.executable,
        "-m",
        "samdiffsr",
        "serve",
        "--port",
        "0",
        "-m",
        options.model,
        "--queue",
        str(options.queue),
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            asyncio.run(load(server.stdout.readline().strip(), server.pid, options))
        finally:
            server.terminate()


if __name__ == "__main__":
    main()
