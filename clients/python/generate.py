"""Makes the modules of `src/quoral/v1` from the protos of the repository. Run it when a proto has changed:

    pip install 'grpcio-tools==1.62.3' 'setuptools<80'
    python clients/python/generate.py

The modules are checked in, so that `pip install ./clients/python` needs no compiler of protos and no version of one.
Code that a compiler of protos makes runs with its own version of protobuf and with later ones, so an old compiler is
the right one: this one's code runs with protobuf 4.25 and all that follow. `tests/test_protos.py` says when the
modules are older than the protos. The protocol between nodes is not for clients and left out.
"""

import pathlib

import grpc_tools
from grpc_tools import protoc

HERE = pathlib.Path(__file__).resolve().parent
PROTO = HERE.parent.parent / "proto"
NAMES = ("kv", "cluster", "failure")


def main() -> None:
    google = pathlib.Path(grpc_tools.__file__).parent / "_proto"
    out = HERE / "src"
    files = [f"quoral/v1/{name}.proto" for name in NAMES]
    outs = [f"--{kind}_out={out}" for kind in ("python", "pyi", "grpc_python")]
    code = protoc.main(["protoc", f"-I{PROTO}", f"-I{google}", *outs, *files])
    if code != 0:
        raise SystemExit(f"protoc failed with {code}")
    # A proto without a service has no calls.
    (out / "quoral/v1/failure_pb2_grpc.py").unlink()


if __name__ == "__main__":
    main()
