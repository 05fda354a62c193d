"""A gRPC server on asyncio: HTTP/2 read and written here, because the front was most of what a write cost.

::

    server.py      what listens, and the methods it serves (a grpc.aio.Server to whoever adds services)
    connection.py  one connection: frames in, frames out, windows, limits
    stream.py      one call on it: its messages, its state, what waits to be sent
    calls.py       runs a handler for a stream
    context.py     what the handler sees of the call (a grpc.aio.ServicerContext)
    request.py     a decoded header block as a gRPC request
    headers.py     header blocks: decoding with a memory, encoding without one
    frames.py      frame layout, settings, error codes
    police.py      how much of what is legal is too much

Sources: RFC 9113 (HTTP/2), RFC 7541 (HPACK), and the document "gRPC over HTTP2" of the gRPC project.

It faces the open network: everything a peer can make it keep is bounded, and everything malformed ends the stream or
the connection with the code the RFC names. Upper layers see nothing of this package but grpc.aio's own interfaces.
"""
