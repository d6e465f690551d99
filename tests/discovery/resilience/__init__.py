"""It keeps working: outages of a real Consul, forks, many processes, sources that fall silent."""
