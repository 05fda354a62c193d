"""The Python clients of etcd (aetcd, etcd3, etcd3gw) run their own tests against us: `make clients`."""
