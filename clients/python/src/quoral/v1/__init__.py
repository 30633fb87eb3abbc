"""The messages and calls of the protos, as the tools of gRPC make them: for what the client does not cover."""
