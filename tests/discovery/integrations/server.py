"""A small HTTP/1.1 server that tells what it was asked; a process of its own, so that it can be killed.

python -I server.py [--tls CERTIFICATE]     prints the port it listens on

/...        JSON: port, method, path, headers and body of the request
/count      JSON: how many requests came for each path, and how many connections
/hang-up    breaks the connection instead of answering
/drip       begins its answer, and ends it when somebody has asked for /go
/redirect   302 to what follows the '?'
/fail?503   answers with that status from now on, but for /fail
"""

from __future__ import annotations

import asyncio
import json
import ssl
import sys
from collections import Counter

counts: Counter[str] = Counter()
go = asyncio.Event()
failing = "200 OK"
port = 0


async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    counts["connections"] += 1
    try:
        while await answer(reader, writer):
            pass
    except (ConnectionError, asyncio.IncompleteReadError):
        pass  # the client's way to say good-bye
    finally:
        writer.close()


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
    """Answer one request; False when the connection is over."""
    start, *rows = (await reader.readuntil(b"\r\n\r\n")).decode().rstrip().split("\r\n")
    method, path, _ = start.split(" ")
    headers = {name.lower(): value.strip() for name, _, value in (row.partition(":") for row in rows)}
    body = await reader.readexactly(int(headers.get("content-length", 0)))
    global failing
    counts[path] += 1
    status, extra = failing, ""
    match path.partition("?")[0]:
        case "/hang-up":
            return False
        case "/wait":
            await go.wait()
            content = b"{}"
        case "/count":
            content = json.dumps(counts).encode()
        case "/redirect":
            status, extra, content = "302 Found", f"Location: {path.partition('?')[2]}\r\n", b""
        case "/fail":
            status, content = "200 OK", b"{}"
            failing = f"{path.partition('?')[2]} As asked"
        case "/go":
            go.set()
            content = b"{}"
        case _:
            asked = {"port": port, "method": method, "path": path, "headers": headers, "body": body.decode()}
            content = json.dumps(asked).encode()
    answer_head = f"HTTP/1.1 {status}\r\nContent-Length: {len(content)}\r\n{extra}\r\n".encode()
    if path == "/half":
        writer.write(answer_head + content[:-1])
        await writer.drain()
        return False
    if path == "/drip":
        writer.write(answer_head + content[:1])
        await writer.drain()
        await go.wait()
        writer.write(content[1:])
    else:
        writer.write(answer_head + (b"" if method == "HEAD" else content))
    await writer.drain()
    return True


async def main(certificate: str | None) -> None:
    global port
    context = None
    if certificate is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    port = server.sockets[0].getsockname()[1]
    print(port, flush=True)
    # Our input ends with the process that started us, however that ends: nobody else would end us then.
    asyncio.get_running_loop().add_reader(sys.stdin, server.close)
    await server.wait_closed()


asyncio.run(main(sys.argv[2] if len(sys.argv) > 2 else None))
