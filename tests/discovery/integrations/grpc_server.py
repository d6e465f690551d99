"""A small gRPC server that tells its port; a process of its own, so that it can be killed.

python -I grpc_server.py [CERTIFICATE]     prints the port it listens on

/test.Echo/Who      the port
/test.Echo/Name     the authority that the caller asked for
/test.Echo/Break    breaks off: ends the process
/test.Echo/Count    one message for each that it is sent, the port
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from concurrent import futures
from pathlib import Path

import grpc

port = 0


def who(request: bytes, context: grpc.ServicerContext) -> bytes:
    return str(port).encode()


def name(request: bytes, context: grpc.ServicerContext) -> bytes:
    authority: str = context._rpc_event.call_details.host.decode()
    return authority.encode()


def break_off(request: bytes, context: grpc.ServicerContext) -> bytes:
    os._exit(1)


def count(requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
    for _ in requests:
        yield str(port).encode()


def main(certificate: str | None) -> None:
    global port
    server = grpc.server(futures.ThreadPoolExecutor(8))
    methods = {
        "Who": grpc.unary_unary_rpc_method_handler(who),
        "Name": grpc.unary_unary_rpc_method_handler(name),
        "Break": grpc.unary_unary_rpc_method_handler(break_off),
        "Count": grpc.stream_stream_rpc_method_handler(count),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Echo", methods),))
    if certificate is None:
        port = server.add_insecure_port("127.0.0.1:0")
    else:
        pem = Path(certificate).read_bytes()
        port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([(pem, pem)]))
    server.start()
    print(port, flush=True)
    sys.stdin.read()  # ends with the process that started us, however that ends
    server.stop(None)


main(sys.argv[1] if len(sys.argv) > 1 else None)
