"""The embedded agent: the part of Consul's HTTP API that portcall uses, in memory, for one host.

It is the registry where no Consul answers, the fake in this project's unit tests, and the one for the tests
of applications. One contract suite runs against it and against real Consul; where they differ, it is wrong,
except for four things that are so on purpose:

- What it cannot do it refuses (400, with a sentence) instead of accepting it: checks other than HTTP, TCP and
  TTL (gRPC, UDP, alias, ...), thresholds of check results, services of the mesh. Script and Docker checks are
  refused as by a Consul agent whose script checks are disabled, which is Consul's default.
- Filters are for ``/v1/agent/services`` only, and without ``matches``.
- Each read says X-Consul-KnownLeader: true. Consul's streaming, which answers its blocking reads of health,
  says false whatever is so.
- It is alone: there are no other data centres, no members, and nothing outlives the process.

    agent.py ─┬─ http.py          sockets and threads of the server
              ├─ checks.py        threads that run HTTP and TCP checks
              └─ api.py           paths, parameters, status codes            pure, from here on
                  ├─ bodies.py · filters.py                   what clients send
                  ├─ answers.py                               what they get
                  └─ state.py     the agent's services, checks and clocks
                      └─ catalogue.py · topics.py    what everybody sees, its indexes, and who wakes
"""

from __future__ import annotations

from discovery.agent.agent import Agent

__all__ = ["Agent"]
