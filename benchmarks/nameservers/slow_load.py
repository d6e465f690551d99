#!/usr/bin/env python3
"""As load.c, where there is no C compiler: the same arguments, the same line of JSON, a tenth of the load."""

from __future__ import annotations

import json
import selectors
import socket
import sys
import time
from pathlib import Path

TIMEOUT = 0.25  # s, as in load.c


def main() -> None:
    host, port, seconds, rate, window, sockets, path = sys.argv[1:]
    raw, questions = Path(path).read_bytes(), []
    while raw:
        length = int.from_bytes(raw[:2])
        questions.append(raw[2 : 2 + length])
        raw = raw[2 + length :]

    clients = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(int(sockets))]
    ready = selectors.DefaultSelector()
    asked: list[dict[int, tuple[float, bytes]]] = [{} for _ in clients]
    for number, client in enumerate(clients):
        client.setblocking(False)
        client.connect((host, int(port)))
        ready.register(client, selectors.EVENT_READ, number)

    sent = good = empty = wrong = lost = 0
    took: list[float] = []

    def ask(number: int, due: float) -> None:
        nonlocal sent
        question = questions[sent % len(questions)]
        ident = sent & 0xFFFF
        sent += 1
        asked[number][ident] = (due, question)
        try:
            clients[number].send(ident.to_bytes(2) + question[2:])
        except OSError:
            pass  # counted as lost

    def take(number: int) -> None:
        nonlocal good, empty, wrong
        while True:
            try:
                reply = clients[number].recv(4096)
            except OSError:
                return
            since, question = asked[number].pop(int.from_bytes(reply[:2]), (0.0, b""))
            if not question:
                continue  # late; it was counted as lost
            end = question.find(b"\0", 12) + 5
            if reply[12:end] != question[12:end]:
                wrong += 1
                continue
            took.append(time.perf_counter() - since)
            if reply[3] & 0xF == 0 and reply[6:8] != b"\0\0":
                good += 1
            else:
                empty += 1

    start = checked = time.perf_counter()
    share = max(1, int(window) // len(clients))
    while (now := time.perf_counter()) < start + float(seconds):
        if float(rate):
            while sent < (now - start) * float(rate):
                ask(sent % len(clients), start + sent / float(rate))
        else:
            for number, under_way in enumerate(asked):
                while len(under_way) < share:
                    ask(number, now)
        for key, _ in ready.select(0.001):
            take(key.data)
        if now - checked > TIMEOUT / 10:
            checked = now
            for under_way in asked:
                for ident in [one for one, (since, _) in under_way.items() if now - since > TIMEOUT]:
                    del under_way[ident]
                    lost += 1
    elapsed = time.perf_counter() - start
    while time.perf_counter() < start + elapsed + TIMEOUT and any(asked):
        for key, _ in ready.select(0.01):
            take(key.data)
    lost += sum(map(len, asked))
    took.sort()

    def percentile(share: float) -> float:
        return took[min(len(took) - 1, int(len(took) * share))] * 1e6 if took else 0.0

    outcome = {"sent": sent, "good": good, "empty": empty, "wrong": wrong, "lost": lost, "seconds": elapsed}
    print(json.dumps({**outcome, "p50": percentile(0.5), "p99": percentile(0.99)}))


if __name__ == "__main__":
    main()
