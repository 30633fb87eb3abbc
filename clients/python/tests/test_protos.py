"""The modules in the package are those of the protos: what they describe is compared, not how a tool wrote it."""

from __future__ import annotations

import os
import pathlib
import tempfile
import unittest

from google.protobuf import descriptor_pb2

from quoral.v1 import cluster_pb2, failure_pb2, kv_pb2

ROOT = pathlib.Path(__file__).resolve().parents[3]


class TheModules(unittest.TestCase):
    def test_are_up_to_date(self) -> None:
        try:
            from grpc_tools import protoc
        except ImportError:
            if os.environ.get("QUORAL_REQUIRE_PYTHON") == "1":
                raise
            raise unittest.SkipTest("there is no grpcio-tools") from None
        with tempfile.TemporaryDirectory() as folder:
            out = pathlib.Path(folder) / "set"
            files = [f"quoral/v1/{name}.proto" for name in ("kv", "cluster", "failure")]
            self.assertEqual(
                protoc.main(["protoc", f"-I{ROOT / 'proto'}", f"--descriptor_set_out={out}", *files]), 0
            )
            made = descriptor_pb2.FileDescriptorSet.FromString(out.read_bytes())
        self.assertEqual(len(made.file), 3)
        for file in made.file:
            module = {m.DESCRIPTOR.name: m for m in (kv_pb2, cluster_pb2, failure_pb2)}[file.name]
            have = descriptor_pb2.FileDescriptorProto.FromString(module.DESCRIPTOR.serialized_pb)
            for either in (file, have):
                for message in either.message_type:
                    for field in message.field:
                        field.ClearField("json_name")
            self.assertEqual(have, file, f"{file.name}: run clients/python/generate.py")
            stub = pathlib.Path(str(module.__file__)).with_suffix(".pyi").read_text()
            names = {m.name for m in file.message_type} | {f.name for m in file.message_type for f in m.field}
            self.assertEqual(
                [n for n in sorted(names) if n not in stub], [], "types: run clients/python/generate.py"
            )


if __name__ == "__main__":
    unittest.main()
