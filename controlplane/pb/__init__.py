"""Generated protobuf and gRPC code. Sources are in ``proto/``; ``make gen`` makes it, nobody edits it."""
