"""What the suites share: waiting for a condition, real Consul agents, and the rule on skipping.

Laws: a test never sleeps, it waits for a condition with a deadline; whatever is started here is stopped
by its own process id; and where the machine could run a test, a missing tool is a failure, not a skip.
"""

from tests.tools.consul import ConsulAgent, consul_bin
from tests.tools.machine import free_port, missing, require_root
from tests.tools.tls import Authority
from tests.tools.waiting import wait_until

__all__ = ["wait_until", "Authority", "ConsulAgent", "consul_bin", "free_port", "missing", "require_root"]
