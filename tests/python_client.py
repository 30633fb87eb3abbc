"""A client in another language: Python's grpcio, with stubs that grpcio-tools makes from proto/.

    pip install grpcio grpcio-tools
    python tests/python_client.py 127.0.0.1:7400 127.0.0.1:7410 127.0.0.1:7420

Talks to a running cluster (the addresses given, or QUORAL_ENDPOINTS) and checks what a user may rely on.
Prints one line a step; the first thing that is not as promised ends it with a traceback and exit code 1.
Needs nothing of Quoral's but the protos, so it is an example too.
"""

import atexit
import os
import pathlib
import shutil
import sys
import tempfile
import time
import uuid

import grpc
from grpc_tools import protoc

ROOT = pathlib.Path(__file__).resolve().parent.parent

# The parts of three well-known protos that are needed, so that no further package has to be installed.
HEALTH = """
syntax = "proto3";
package grpc.health.v1;
message HealthCheckRequest { string service = 1; }
message HealthCheckResponse {
  enum ServingStatus { UNKNOWN = 0; SERVING = 1; NOT_SERVING = 2; SERVICE_UNKNOWN = 3; }
  ServingStatus status = 1;
}
service Health { rpc Check(HealthCheckRequest) returns (HealthCheckResponse); }
"""
REFLECTION = """
syntax = "proto3";
package grpc.reflection.v1;
message ServerReflectionRequest { string host = 1; oneof message_request { string list_services = 7; } }
message ServerReflectionResponse { oneof message_response { ListServiceResponse list_services_response = 6; } }
message ListServiceResponse { repeated ServiceResponse service = 1; }
message ServiceResponse { string name = 1; }
service ServerReflection {
  rpc ServerReflectionInfo(stream ServerReflectionRequest) returns (stream ServerReflectionResponse);
}
"""
STATUS = """
syntax = "proto3";
package wellknown;
import "google/protobuf/any.proto";
message Status { int32 code = 1; string message = 2; repeated google.protobuf.Any details = 3; }
"""


def make_stubs():
    """Generates the stubs into a new directory and imports them."""
    out = pathlib.Path(tempfile.mkdtemp(prefix="quoral-stubs-"))
    atexit.register(shutil.rmtree, out, ignore_errors=True)
    for name, text in {"health": HEALTH, "reflection": REFLECTION, "status": STATUS}.items():
        (out / f"wk_{name}.proto").write_text(text)
    own = [str(p.relative_to(ROOT / "proto")) for p in sorted((ROOT / "proto").rglob("*.proto"))]
    wellknown = [f"wk_{name}.proto" for name in ("health", "reflection", "status")]
    google = pathlib.Path(protoc.__file__).parent / "_proto"
    code = protoc.main(
        ["protoc", f"-I{ROOT / 'proto'}", f"-I{out}", f"-I{google}"]
        + [f"--python_out={out}", f"--grpc_python_out={out}"]
        + own
        + wellknown
    )
    assert code == 0, f"protoc failed with {code}"
    # Packages of their own: without this the package of clients/python would come first where it is installed.
    for folder in ("quoral", "quoral/v1"):
        (out / folder / "__init__.py").touch()
    sys.path.insert(0, str(out))


make_stubs()
from quoral.v1 import cluster_pb2, cluster_pb2_grpc, failure_pb2, kv_pb2, kv_pb2_grpc  # noqa: E402
import wk_health_pb2, wk_health_pb2_grpc  # noqa: E401,E402
import wk_reflection_pb2, wk_reflection_pb2_grpc  # noqa: E401,E402
import wk_status_pb2  # noqa: E402

TIMEOUT = 10
RUN = uuid.uuid4().hex[:8]


def key(name):
    """A key of this run, so that the checks can be run again on the same cluster."""
    return f"python:{RUN}:{name}".encode()


def step(name):
    print(f"python client: {name}", flush=True)


def failure_of(error):
    """The quoral.v1.Failure in an error's details."""
    found = dict(error.trailing_metadata() or ())
    assert "grpc-status-details-bin" in found, f"no details on {error.code()}: {error.details()}"
    status = wk_status_pb2.Status.FromString(found["grpc-status-details-bin"])
    assert status.code == error.code().value[0], f"{status.code} is not {error.code()}"
    for detail in status.details:
        failure = failure_pb2.Failure()
        if detail.Unpack(failure):
            return failure
    raise AssertionError(f"no quoral.v1.Failure among {[d.type_url for d in status.details]}")


def refused(call, request, code, *words):
    """Expects an error with this code, these words in its message, and `applied = NO`."""
    try:
        call(request, timeout=TIMEOUT)
    except grpc.RpcError as error:
        assert error.code() == code, f"{error.code()} instead of {code}: {error.details()}"
        for word in words:
            assert word in error.details(), f"{word!r} is not in {error.details()!r}"
        failure = failure_of(error)
        assert failure.applied == failure_pb2.NO, f"applied is {failure.applied}"
        return failure
    raise AssertionError(f"{request} was not refused")


def connect(endpoints):
    channels = [grpc.insecure_channel(e) for e in endpoints]
    for channel in channels:
        grpc.channel_ready_future(channel).result(timeout=30)
    return channels


def check_put_get_delete(kvs):
    step("put, get and delete")
    first, last = kvs[0], kvs[-1]
    k, value = key("binary"), bytes(range(256)) * 4
    missing = first.Get(kv_pb2.GetRequest(key=k), timeout=TIMEOUT)
    assert not missing.found and not missing.siblings
    put = first.Put(kv_pb2.PutRequest(key=k, value=value), timeout=TIMEOUT)
    assert put.w == 2 and put.acks >= 2 and not put.sloppy and put.stamp > 0, put
    got = last.Get(kv_pb2.GetRequest(key=k), timeout=TIMEOUT)
    assert got.found and [s.value for s in got.siblings] == [value]
    assert got.siblings[0].stamp == put.stamp and got.r == 2 and got.replies >= 2
    again = last.Put(kv_pb2.PutRequest(key=k, value=b"2", w_level=kv_pb2.ALL), timeout=TIMEOUT)
    assert again.w == 3 and again.acks == 3 and again.stamp > put.stamp
    for kv in kvs:
        one = kv.Get(kv_pb2.GetRequest(key=k, r=1), timeout=TIMEOUT)
        assert [s.value for s in one.siblings] == [b"2"], one
    deleted = first.Delete(kv_pb2.DeleteRequest(key=k), timeout=TIMEOUT)
    assert deleted.acks >= 2 and deleted.stamp > again.stamp
    assert not last.Get(kv_pb2.GetRequest(key=k), timeout=TIMEOUT).found
    empty = key("empty value")
    first.Put(kv_pb2.PutRequest(key=empty), timeout=TIMEOUT)
    got = last.Get(kv_pb2.GetRequest(key=empty), timeout=TIMEOUT)
    assert got.found and got.siblings[0].value == b"", "an empty value is a value"


def check_expiry(kvs):
    step("a value with a time to live")
    k = key("ttl")
    kvs[0].Put(kv_pb2.PutRequest(key=k, value=b"short", ttl_ms=1_500), timeout=TIMEOUT)
    got = kvs[-1].Get(kv_pb2.GetRequest(key=k), timeout=TIMEOUT)
    assert got.found and got.siblings[0].expires_at_ms > 0
    deadline = time.monotonic() + TIMEOUT
    while kvs[-1].Get(kv_pb2.GetRequest(key=k), timeout=TIMEOUT).found:
        assert time.monotonic() < deadline, "it never expired"
        time.sleep(0.1)


def make_keyspace(clusters, name):
    request = cluster_pb2.CreateKeyspaceRequest(name=name, conflicts="siblings")
    made = clusters[0].CreateKeyspace(request, timeout=30).keyspace
    assert (made.name, made.conflicts, made.n, made.r, made.w) == (name, "siblings", 3, 2, 2), made
    try:
        clusters[0].CreateKeyspace(request, timeout=30)
        raise AssertionError("a second creation of the name was not refused")
    except grpc.RpcError as error:
        assert error.code() == grpc.StatusCode.ALREADY_EXISTS, error
    deadline = time.monotonic() + 30
    for cluster in clusters:
        listed = cluster_pb2.ListKeyspacesRequest()
        while name not in [k.name for k in cluster.ListKeyspaces(listed, timeout=TIMEOUT).keyspaces]:
            assert time.monotonic() < deadline, "the keyspace did not spread to every node"
            time.sleep(0.1)


def check_changed_keyspace(kvs, clusters):
    step("a keyspace that is updated, dropped and made anew")
    name, first = f"python-changed-{RUN}", clusters[0]
    made = first.CreateKeyspace(cluster_pb2.CreateKeyspaceRequest(name=name), timeout=30)
    update = cluster_pb2.UpdateKeyspaceRequest(name=name, r=1, w=3, if_version=made.map_version)
    updated = first.UpdateKeyspace(update, timeout=30)
    assert (updated.keyspace.id, updated.keyspace.r, updated.keyspace.w) == (made.keyspace.id, 1, 3), updated
    drop = cluster_pb2.DropKeyspaceRequest(name=name)
    get = kv_pb2.GetRequest(keyspace=name, key=b"k")

    def refused(code, call, request):
        try:
            call(request, timeout=30)
            raise AssertionError(f"not refused with {code}")
        except grpc.RpcError as error:
            assert error.code() == code, error

    refused(grpc.StatusCode.ABORTED, first.UpdateKeyspace, update)
    assert first.DropKeyspace(drop, timeout=30).keyspace.id == made.keyspace.id
    refused(grpc.StatusCode.NOT_FOUND, first.DropKeyspace, drop)
    refused(grpc.StatusCode.NOT_FOUND, kvs[0].Get, get)
    again = first.CreateKeyspace(cluster_pb2.CreateKeyspaceRequest(name=name), timeout=30)
    assert again.keyspace.id > made.keyspace.id, "an id was given again"


def check_siblings(kvs, clusters):
    step("a siblings keyspace: blind puts, then a resolution")
    name, k = f"python-{RUN}", key("cart")
    make_keyspace(clusters, name)
    put = lambda at, value, context=b"": kvs[at].Put(  # noqa: E731
        kv_pb2.PutRequest(keyspace=name, key=k, value=value, context=context), timeout=TIMEOUT
    )
    get = lambda at: kvs[at].Get(kv_pb2.GetRequest(keyspace=name, key=k), timeout=TIMEOUT)  # noqa: E731
    values = lambda got: sorted(s.value for s in got.siblings)  # noqa: E731
    put(0, b"apples")
    put(-1, b"pears")
    both = get(0)
    assert values(both) == [b"apples", b"pears"], both
    put(1 % len(kvs), b"plums")
    assert values(get(-1)) == [b"apples", b"pears", b"plums"], "a blind put replaces nothing"
    resolved = put(-1, b"apples, pears", both.context)
    assert values(get(0)) == [b"apples, pears", b"plums"], "only what the context covers is replaced"
    put(0, b"apples, pears, nuts", resolved.context)
    got = get(-1)
    assert values(got) == [b"apples, pears, nuts", b"plums"], "a put's own context covers its put"
    deleted = kvs[0].Delete(
        kv_pb2.DeleteRequest(keyspace=name, key=k, context=got.context), timeout=TIMEOUT
    )
    assert not get(-1).found
    put(-1, b"anew", deleted.context)
    assert values(get(0)) == [b"anew"]
    other = kv_pb2.PutRequest(keyspace=name, key=key("other"), value=b"x", context=got.context)
    refused(kvs[0].Put, other, grpc.StatusCode.INVALID_ARGUMENT, "context")


def check_refusals(kvs):
    step("refusals with their details")
    kv, bad = kvs[0], grpc.StatusCode.INVALID_ARGUMENT
    put, get = kv_pb2.PutRequest, kv_pb2.GetRequest
    k = key("refused")
    refused(kv.Get, get(keyspace="nowhere", key=k), grpc.StatusCode.NOT_FOUND, "nowhere")
    refused(kv.Put, put(keyspace="nowhere", key=k), grpc.StatusCode.NOT_FOUND, "nowhere")
    refused(kv.Put, put(key=b"", value=b"v"), bad, "key")
    refused(kv.Put, put(key=b"k" * 1_025, value=b"v"), bad, "key", "1024", "1025")
    refused(kv.Put, put(key=k, sort=b"s" * 1_025, value=b"v"), bad, "sort", "1024", "1025")
    refused(kv.Put, put(key=k, value=b"v" * (2**20 + 1)), bad, "value", "1048576", "1048577")
    refused(kv.Put, put(key=k, value=b"v", w=4), bad, "w", "4", "3")
    refused(kv.Get, get(key=k, r=4), bad, "r", "4", "3")
    refused(kv.Put, put(key=k, value=b"v", context=b"junk"), bad, "context")
    assert not kvs[-1].Get(get(key=k), timeout=TIMEOUT).found, "a refused put left something"


def check_scan(kvs):
    step("a scan of sort keys, page by page")
    k = key("scan")
    sorts = [b"a\x00", b"a1", b"a2", b"b", b"\xff"]
    for i, sort in enumerate(sorts):
        kvs[i % len(kvs)].Put(kv_pb2.PutRequest(key=k, sort=sort, value=sort), timeout=TIMEOUT)

    def scan(**options):
        pages = list(kvs[0].Scan(kv_pb2.ScanRequest(key=k, **options), timeout=TIMEOUT))
        entries = [e for page in pages for e in page.entries]
        assert all(e.key == k and [s.value for s in e.siblings] == [e.sort] for e in entries)
        return [e.sort for e in entries], pages[-1].cursor if pages else b""

    assert scan() == (sorts, b"")
    assert scan(reverse=True)[0] == sorts[::-1]
    assert scan(prefix=b"a")[0] == sorts[:3]
    assert scan(start=b"a1", end=b"b")[0] == sorts[1:3], "the start is in, the end is not"
    some, cursor = scan(limit=2)
    assert some == sorts[:2] and cursor, "there is more behind a limit"
    assert scan(limit=2, cursor=cursor)[0] == sorts[2:4]
    kvs[0].Delete(kv_pb2.DeleteRequest(key=k, sort=b"a1"), timeout=TIMEOUT)
    assert scan()[0] == [s for s in sorts if s != b"a1"]


def batch_item(request):
    name = {kv_pb2.PutRequest: "put", kv_pb2.GetRequest: "get", kv_pb2.DeleteRequest: "delete"}[type(request)]
    return kv_pb2.BatchItem(**{name: request})


def check_batch(kvs):
    step("a batch: one status for each item")
    put, get, delete = kv_pb2.PutRequest, kv_pb2.GetRequest, kv_pb2.DeleteRequest
    k = key("batch")
    items = [
        put(key=k, value=b"v"),
        get(key=k),
        put(key=b"", value=b"v"),
        delete(key=k),
        get(key=k),
        get(key=k, keyspace="nowhere"),
    ]
    request = kv_pb2.BatchRequest(items=[batch_item(i) for i in items])
    statuses = kvs[0].Batch(request, timeout=TIMEOUT).statuses
    assert [s.WhichOneof("outcome") for s in statuses] == ["put", "get", "error", "delete", "get", "error"]
    assert [v.value for v in statuses[1].get.siblings] == [b"v"] and not statuses[4].get.found, statuses
    for status, code in [(statuses[2], grpc.StatusCode.INVALID_ARGUMENT), (statuses[5], grpc.StatusCode.NOT_FOUND)]:
        error = status.error
        assert error.code == code.value[0] and error.failure.applied == failure_pb2.NO, error
    many = [batch_item(put(key=key(f"batch {n}"), value=b"%d" % n)) for n in range(1_001)]
    bad = grpc.StatusCode.INVALID_ARGUMENT
    refused(kvs[0].Batch, kv_pb2.BatchRequest(items=many), bad, "items", "1001", "1000")
    refused(kvs[0].Batch, kv_pb2.BatchRequest(), bad, "items")
    statuses = kvs[0].Batch(kv_pb2.BatchRequest(items=many[:1_000]), timeout=TIMEOUT).statuses
    assert len(statuses) == 1_000 and all(s.put.acks >= 2 for s in statuses)
    many = [batch_item(get(key=key(f"batch {n}"))) for n in range(1_000)]
    statuses = kvs[-1].Batch(kv_pb2.BatchRequest(items=many), timeout=TIMEOUT).statuses
    assert [s.get.siblings[0].value for s in statuses] == [b"%d" % n for n in range(1_000)]


def check_session(kvs):
    step("a session: answers matched by id")
    put, get = kv_pb2.PutRequest, kv_pb2.GetRequest

    def session(messages):
        """All answers by id; the last message closes the client's side."""
        answers = {}
        for answer in kvs[0].Session(iter(messages)):
            assert answer.id not in answers, f"{answer.id} is answered twice"
            answers[answer.id] = answer
        assert answers.keys() == {m.id for m in messages}, "each request has one answer"
        return answers

    name = lambda n: key(f"session {n}")
    puts = [kv_pb2.SessionRequest(id=n, put=put(key=name(n), value=b"%d" % n)) for n in range(2_000)]
    assert all(a.put.acks >= 2 for a in session(puts).values())
    gets = [kv_pb2.SessionRequest(id=2**63 + n, get=get(key=name(n))) for n in range(2_000)]
    bad = [kv_pb2.SessionRequest(id=1), kv_pb2.SessionRequest(id=2, get=get(key=b""))]
    gone = kv_pb2.SessionRequest(id=3, delete=kv_pb2.DeleteRequest(key=key("never was")))
    answers = session(gets[:1_000] + bad + [gone] + gets[1_000:])
    assert [answers[2**63 + n].get.siblings[0].value for n in range(2_000)] == [b"%d" % n for n in range(2_000)]
    for n in (1, 2):
        error = answers[n].error
        assert error.code == grpc.StatusCode.INVALID_ARGUMENT.value[0], error
        assert error.failure.applied == failure_pb2.NO, error
    assert answers[3].WhichOneof("outcome") == "delete"


def check_cluster(clusters, endpoints):
    step("status and explain")
    for cluster in clusters:
        status = cluster.Status(cluster_pb2.StatusRequest(), timeout=TIMEOUT)
        assert len(status.nodes) >= len(endpoints) and status.layout_version >= 1, status
        assert [n.state for n in status.nodes] == ["alive"] * len(status.nodes), status
        assert abs(sum(n.ownership for n in status.nodes) - 1) < 0.01, status
    explained = clusters[0].Explain(cluster_pb2.ExplainRequest(key=key("binary")), timeout=TIMEOUT)
    homes = [r for r in explained.replicas if r.role == "home"]
    assert len(homes) == 3 and len({r.node_id for r in homes}) == 3, explained


def check_health_and_reflection(channel):
    step("health and reflection")
    health = wk_health_pb2_grpc.HealthStub(channel)
    for service in ("", "quoral.v1.Kv", "quoral.v1.Cluster"):
        request = wk_health_pb2.HealthCheckRequest(service=service)
        answer = health.Check(request, timeout=TIMEOUT)
        assert answer.status == wk_health_pb2.HealthCheckResponse.SERVING, (service, answer)
    try:
        health.Check(wk_health_pb2.HealthCheckRequest(service="no.such.Service"), timeout=TIMEOUT)
        raise AssertionError("the health of an unknown service is known")
    except grpc.RpcError as error:
        assert error.code() == grpc.StatusCode.NOT_FOUND, error
    reflection = wk_reflection_pb2_grpc.ServerReflectionStub(channel)
    ask = wk_reflection_pb2.ServerReflectionRequest(list_services="*")
    answer = next(reflection.ServerReflectionInfo(iter([ask]), timeout=TIMEOUT))
    services = {s.name for s in answer.list_services_response.service}
    assert {"quoral.v1.Kv", "quoral.v1.Cluster"} <= services, services


def main():
    endpoints = sys.argv[1:] or os.environ.get("QUORAL_ENDPOINTS", "127.0.0.1:7400").split(",")
    channels = connect(endpoints)
    kvs = [kv_pb2_grpc.KvStub(c) for c in channels]
    clusters = [cluster_pb2_grpc.ClusterStub(c) for c in channels]
    check_health_and_reflection(channels[0])
    check_cluster(clusters, endpoints)
    check_put_get_delete(kvs)
    check_expiry(kvs)
    check_siblings(kvs, clusters)
    check_changed_keyspace(kvs, clusters)
    check_refusals(kvs)
    check_scan(kvs)
    check_batch(kvs)
    check_session(kvs)
    for channel in channels:
        channel.close()
    step("all as promised")


if __name__ == "__main__":
    main()
