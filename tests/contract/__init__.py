"""One suite for the embedded agent and for real Consul: where they differ, the embedded agent is wrong.

It talks plain HTTP, so that it tests what is on the wire. The few answers that changed between releases of
Consul are written down side by side (`by_release`); the embedded agent gives the newer one.
"""
