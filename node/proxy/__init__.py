"""Service VIPs. ``userspace``: every agent listens on every VIP and relays to ready endpoints; no root needed.

The plug: an agent builds a :class:`~node.proxy.userspace.UserspaceProxy`, calls ``start()`` and ``stop()``, and needs
to know nothing else.
"""
