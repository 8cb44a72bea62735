"""Several machines on one: network namespaces joined by links of a known rate and latency (root, Linux)."""
