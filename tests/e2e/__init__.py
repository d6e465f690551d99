"""The walkthrough on three real hosts: dockerd, Consul, registrar and resolver as in examples/three-hosts."""
