"""HTTP and gRPC clients that take the name of a service for a host.

    http://python-micro-service.service.consul/path
           ^^^^^^^^^^^^^^^^^^^^ one of its instances, chosen anew for every request

One module for each library, named as the library is:

    requests    Session, mount, Adapter
    httpx       Transport, AsyncTransport
    httpx2      Transport, AsyncTransport
    aiohttp     Middleware
    urllib3     PoolManager
    grpc        channel
    grpc_aio    channel

and two observers, ``prometheus`` and ``opentelemetry``.

Laws, the same for all HTTP clients:
- The name stays in the URL, in the Host header, in cookies and in TLS (server name and certificate check);
  the connection alone goes to the instance. Name resolution of the process is left as it is.
- Connections are pooled per instance, and idle ones are closed at once when their instance leaves.
- A request that an instance did not answer is tried on another one: any request that was certainly not sent,
  otherwise those whose method is idempotent (RFC 9110 section 9.2.2) and whose body can be sent again.
- Instances are reached directly: proxies are for hosts that are no services.
- An instance brings its port. A port in the URL wins over it, as with a name from DNS.
"""
