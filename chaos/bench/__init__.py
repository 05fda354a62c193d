"""`make bench`: ours beside a real etcd on the same machine, in one run. See docs/benchmarks.md for what came out."""
