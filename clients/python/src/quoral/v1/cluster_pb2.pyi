from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class StatusRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Refill(_message.Message):
    __slots__ = ("trees", "done", "records", "waits_for")
    TREES_FIELD_NUMBER: _ClassVar[int]
    DONE_FIELD_NUMBER: _ClassVar[int]
    RECORDS_FIELD_NUMBER: _ClassVar[int]
    WAITS_FOR_FIELD_NUMBER: _ClassVar[int]
    trees: int
    done: int
    records: int
    waits_for: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, trees: _Optional[int] = ..., done: _Optional[int] = ..., records: _Optional[int] = ..., waits_for: _Optional[_Iterable[str]] = ...) -> None: ...

class Damage(_message.Message):
    __slots__ = ("waiting", "quarantined", "unreadable")
    WAITING_FIELD_NUMBER: _ClassVar[int]
    QUARANTINED_FIELD_NUMBER: _ClassVar[int]
    UNREADABLE_FIELD_NUMBER: _ClassVar[int]
    waiting: int
    quarantined: int
    unreadable: bool
    def __init__(self, waiting: _Optional[int] = ..., quarantined: _Optional[int] = ..., unreadable: bool = ...) -> None: ...

class DueTombstones(_message.Message):
    __slots__ = ("waiting", "waits_for")
    WAITING_FIELD_NUMBER: _ClassVar[int]
    WAITS_FOR_FIELD_NUMBER: _ClassVar[int]
    waiting: int
    waits_for: _containers.RepeatedCompositeFieldContainer[TombstonesFor]
    def __init__(self, waiting: _Optional[int] = ..., waits_for: _Optional[_Iterable[_Union[TombstonesFor, _Mapping]]] = ...) -> None: ...

class TombstonesFor(_message.Message):
    __slots__ = ("node_id", "tombstones")
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    TOMBSTONES_FIELD_NUMBER: _ClassVar[int]
    node_id: str
    tombstones: int
    def __init__(self, node_id: _Optional[str] = ..., tombstones: _Optional[int] = ...) -> None: ...

class NodeStatus(_message.Message):
    __slots__ = ("node_id", "name", "address", "client_address", "zone", "state", "ownership", "hints", "disk_bytes", "durability", "map_version", "hints_delivered", "hints_per_second", "hints_refused", "hints_refusal", "proved_ms", "refill", "damage", "tombstones")
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    CLIENT_ADDRESS_FIELD_NUMBER: _ClassVar[int]
    ZONE_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    OWNERSHIP_FIELD_NUMBER: _ClassVar[int]
    HINTS_FIELD_NUMBER: _ClassVar[int]
    DISK_BYTES_FIELD_NUMBER: _ClassVar[int]
    DURABILITY_FIELD_NUMBER: _ClassVar[int]
    MAP_VERSION_FIELD_NUMBER: _ClassVar[int]
    HINTS_DELIVERED_FIELD_NUMBER: _ClassVar[int]
    HINTS_PER_SECOND_FIELD_NUMBER: _ClassVar[int]
    HINTS_REFUSED_FIELD_NUMBER: _ClassVar[int]
    HINTS_REFUSAL_FIELD_NUMBER: _ClassVar[int]
    PROVED_MS_FIELD_NUMBER: _ClassVar[int]
    REFILL_FIELD_NUMBER: _ClassVar[int]
    DAMAGE_FIELD_NUMBER: _ClassVar[int]
    TOMBSTONES_FIELD_NUMBER: _ClassVar[int]
    node_id: str
    name: str
    address: str
    client_address: str
    zone: str
    state: str
    ownership: float
    hints: int
    disk_bytes: int
    durability: str
    map_version: int
    hints_delivered: int
    hints_per_second: int
    hints_refused: int
    hints_refusal: str
    proved_ms: int
    refill: Refill
    damage: Damage
    tombstones: DueTombstones
    def __init__(self, node_id: _Optional[str] = ..., name: _Optional[str] = ..., address: _Optional[str] = ..., client_address: _Optional[str] = ..., zone: _Optional[str] = ..., state: _Optional[str] = ..., ownership: _Optional[float] = ..., hints: _Optional[int] = ..., disk_bytes: _Optional[int] = ..., durability: _Optional[str] = ..., map_version: _Optional[int] = ..., hints_delivered: _Optional[int] = ..., hints_per_second: _Optional[int] = ..., hints_refused: _Optional[int] = ..., hints_refusal: _Optional[str] = ..., proved_ms: _Optional[int] = ..., refill: _Optional[_Union[Refill, _Mapping]] = ..., damage: _Optional[_Union[Damage, _Mapping]] = ..., tombstones: _Optional[_Union[DueTombstones, _Mapping]] = ...) -> None: ...

class StatusResponse(_message.Message):
    __slots__ = ("cluster_id", "layout_version", "map_version", "partitions", "nodes", "answered_by", "proved_ms", "now_ms")
    CLUSTER_ID_FIELD_NUMBER: _ClassVar[int]
    LAYOUT_VERSION_FIELD_NUMBER: _ClassVar[int]
    MAP_VERSION_FIELD_NUMBER: _ClassVar[int]
    PARTITIONS_FIELD_NUMBER: _ClassVar[int]
    NODES_FIELD_NUMBER: _ClassVar[int]
    ANSWERED_BY_FIELD_NUMBER: _ClassVar[int]
    PROVED_MS_FIELD_NUMBER: _ClassVar[int]
    NOW_MS_FIELD_NUMBER: _ClassVar[int]
    cluster_id: str
    layout_version: int
    map_version: int
    partitions: int
    nodes: _containers.RepeatedCompositeFieldContainer[NodeStatus]
    answered_by: str
    proved_ms: _containers.RepeatedScalarFieldContainer[int]
    now_ms: int
    def __init__(self, cluster_id: _Optional[str] = ..., layout_version: _Optional[int] = ..., map_version: _Optional[int] = ..., partitions: _Optional[int] = ..., nodes: _Optional[_Iterable[_Union[NodeStatus, _Mapping]]] = ..., answered_by: _Optional[str] = ..., proved_ms: _Optional[_Iterable[int]] = ..., now_ms: _Optional[int] = ...) -> None: ...

class LayoutRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class LayoutMember(_message.Message):
    __slots__ = ("node_id", "name", "address", "zone", "weight")
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    ZONE_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_FIELD_NUMBER: _ClassVar[int]
    node_id: str
    name: str
    address: str
    zone: str
    weight: int
    def __init__(self, node_id: _Optional[str] = ..., name: _Optional[str] = ..., address: _Optional[str] = ..., zone: _Optional[str] = ..., weight: _Optional[int] = ...) -> None: ...

class PartitionOwners(_message.Message):
    __slots__ = ("owners",)
    OWNERS_FIELD_NUMBER: _ClassVar[int]
    owners: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, owners: _Optional[_Iterable[str]] = ...) -> None: ...

class LayoutResponse(_message.Message):
    __slots__ = ("cluster_id", "map_version", "layout_version", "members", "partitions")
    CLUSTER_ID_FIELD_NUMBER: _ClassVar[int]
    MAP_VERSION_FIELD_NUMBER: _ClassVar[int]
    LAYOUT_VERSION_FIELD_NUMBER: _ClassVar[int]
    MEMBERS_FIELD_NUMBER: _ClassVar[int]
    PARTITIONS_FIELD_NUMBER: _ClassVar[int]
    cluster_id: str
    map_version: int
    layout_version: int
    members: _containers.RepeatedCompositeFieldContainer[LayoutMember]
    partitions: _containers.RepeatedCompositeFieldContainer[PartitionOwners]
    def __init__(self, cluster_id: _Optional[str] = ..., map_version: _Optional[int] = ..., layout_version: _Optional[int] = ..., members: _Optional[_Iterable[_Union[LayoutMember, _Mapping]]] = ..., partitions: _Optional[_Iterable[_Union[PartitionOwners, _Mapping]]] = ...) -> None: ...

class KeyspaceInfo(_message.Message):
    __slots__ = ("id", "name", "conflicts", "n", "r", "w", "sloppy", "ttl_ms")
    ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    CONFLICTS_FIELD_NUMBER: _ClassVar[int]
    N_FIELD_NUMBER: _ClassVar[int]
    R_FIELD_NUMBER: _ClassVar[int]
    W_FIELD_NUMBER: _ClassVar[int]
    SLOPPY_FIELD_NUMBER: _ClassVar[int]
    TTL_MS_FIELD_NUMBER: _ClassVar[int]
    id: int
    name: str
    conflicts: str
    n: int
    r: int
    w: int
    sloppy: bool
    ttl_ms: int
    def __init__(self, id: _Optional[int] = ..., name: _Optional[str] = ..., conflicts: _Optional[str] = ..., n: _Optional[int] = ..., r: _Optional[int] = ..., w: _Optional[int] = ..., sloppy: bool = ..., ttl_ms: _Optional[int] = ...) -> None: ...

class CreateKeyspaceRequest(_message.Message):
    __slots__ = ("name", "conflicts", "n", "r", "w", "sloppy", "ttl_ms")
    NAME_FIELD_NUMBER: _ClassVar[int]
    CONFLICTS_FIELD_NUMBER: _ClassVar[int]
    N_FIELD_NUMBER: _ClassVar[int]
    R_FIELD_NUMBER: _ClassVar[int]
    W_FIELD_NUMBER: _ClassVar[int]
    SLOPPY_FIELD_NUMBER: _ClassVar[int]
    TTL_MS_FIELD_NUMBER: _ClassVar[int]
    name: str
    conflicts: str
    n: int
    r: int
    w: int
    sloppy: bool
    ttl_ms: int
    def __init__(self, name: _Optional[str] = ..., conflicts: _Optional[str] = ..., n: _Optional[int] = ..., r: _Optional[int] = ..., w: _Optional[int] = ..., sloppy: bool = ..., ttl_ms: _Optional[int] = ...) -> None: ...

class CreateKeyspaceResponse(_message.Message):
    __slots__ = ("keyspace", "map_version")
    KEYSPACE_FIELD_NUMBER: _ClassVar[int]
    MAP_VERSION_FIELD_NUMBER: _ClassVar[int]
    keyspace: KeyspaceInfo
    map_version: int
    def __init__(self, keyspace: _Optional[_Union[KeyspaceInfo, _Mapping]] = ..., map_version: _Optional[int] = ...) -> None: ...

class UpdateKeyspaceRequest(_message.Message):
    __slots__ = ("name", "r", "w", "sloppy", "ttl_ms", "if_version")
    NAME_FIELD_NUMBER: _ClassVar[int]
    R_FIELD_NUMBER: _ClassVar[int]
    W_FIELD_NUMBER: _ClassVar[int]
    SLOPPY_FIELD_NUMBER: _ClassVar[int]
    TTL_MS_FIELD_NUMBER: _ClassVar[int]
    IF_VERSION_FIELD_NUMBER: _ClassVar[int]
    name: str
    r: int
    w: int
    sloppy: bool
    ttl_ms: int
    if_version: int
    def __init__(self, name: _Optional[str] = ..., r: _Optional[int] = ..., w: _Optional[int] = ..., sloppy: bool = ..., ttl_ms: _Optional[int] = ..., if_version: _Optional[int] = ...) -> None: ...

class UpdateKeyspaceResponse(_message.Message):
    __slots__ = ("keyspace", "map_version")
    KEYSPACE_FIELD_NUMBER: _ClassVar[int]
    MAP_VERSION_FIELD_NUMBER: _ClassVar[int]
    keyspace: KeyspaceInfo
    map_version: int
    def __init__(self, keyspace: _Optional[_Union[KeyspaceInfo, _Mapping]] = ..., map_version: _Optional[int] = ...) -> None: ...

class DropKeyspaceRequest(_message.Message):
    __slots__ = ("name", "if_version")
    NAME_FIELD_NUMBER: _ClassVar[int]
    IF_VERSION_FIELD_NUMBER: _ClassVar[int]
    name: str
    if_version: int
    def __init__(self, name: _Optional[str] = ..., if_version: _Optional[int] = ...) -> None: ...

class DropKeyspaceResponse(_message.Message):
    __slots__ = ("keyspace", "map_version")
    KEYSPACE_FIELD_NUMBER: _ClassVar[int]
    MAP_VERSION_FIELD_NUMBER: _ClassVar[int]
    keyspace: KeyspaceInfo
    map_version: int
    def __init__(self, keyspace: _Optional[_Union[KeyspaceInfo, _Mapping]] = ..., map_version: _Optional[int] = ...) -> None: ...

class ListKeyspacesRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListKeyspacesResponse(_message.Message):
    __slots__ = ("keyspaces", "map_version")
    KEYSPACES_FIELD_NUMBER: _ClassVar[int]
    MAP_VERSION_FIELD_NUMBER: _ClassVar[int]
    keyspaces: _containers.RepeatedCompositeFieldContainer[KeyspaceInfo]
    map_version: int
    def __init__(self, keyspaces: _Optional[_Iterable[_Union[KeyspaceInfo, _Mapping]]] = ..., map_version: _Optional[int] = ...) -> None: ...

class ExplainRequest(_message.Message):
    __slots__ = ("keyspace", "key", "sort")
    KEYSPACE_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    SORT_FIELD_NUMBER: _ClassVar[int]
    keyspace: str
    key: bytes
    sort: bytes
    def __init__(self, keyspace: _Optional[str] = ..., key: _Optional[bytes] = ..., sort: _Optional[bytes] = ...) -> None: ...

class ReplicaView(_message.Message):
    __slots__ = ("node_id", "name", "zone", "role", "state", "version")
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    ZONE_FIELD_NUMBER: _ClassVar[int]
    ROLE_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    node_id: str
    name: str
    zone: str
    role: str
    state: str
    version: str
    def __init__(self, node_id: _Optional[str] = ..., name: _Optional[str] = ..., zone: _Optional[str] = ..., role: _Optional[str] = ..., state: _Optional[str] = ..., version: _Optional[str] = ...) -> None: ...

class ExplainResponse(_message.Message):
    __slots__ = ("keyspace", "partition", "position", "layout_version", "replicas")
    KEYSPACE_FIELD_NUMBER: _ClassVar[int]
    PARTITION_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    LAYOUT_VERSION_FIELD_NUMBER: _ClassVar[int]
    REPLICAS_FIELD_NUMBER: _ClassVar[int]
    keyspace: str
    partition: int
    position: str
    layout_version: int
    replicas: _containers.RepeatedCompositeFieldContainer[ReplicaView]
    def __init__(self, keyspace: _Optional[str] = ..., partition: _Optional[int] = ..., position: _Optional[str] = ..., layout_version: _Optional[int] = ..., replicas: _Optional[_Iterable[_Union[ReplicaView, _Mapping]]] = ...) -> None: ...

class HintsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class HintLog(_message.Message):
    __slots__ = ("holder", "holder_name", "target", "target_name", "target_state", "hints", "bytes", "since_ms", "oldest", "last", "delivered", "per_second", "refused", "refusal")
    HOLDER_FIELD_NUMBER: _ClassVar[int]
    HOLDER_NAME_FIELD_NUMBER: _ClassVar[int]
    TARGET_FIELD_NUMBER: _ClassVar[int]
    TARGET_NAME_FIELD_NUMBER: _ClassVar[int]
    TARGET_STATE_FIELD_NUMBER: _ClassVar[int]
    HINTS_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    SINCE_MS_FIELD_NUMBER: _ClassVar[int]
    OLDEST_FIELD_NUMBER: _ClassVar[int]
    LAST_FIELD_NUMBER: _ClassVar[int]
    DELIVERED_FIELD_NUMBER: _ClassVar[int]
    PER_SECOND_FIELD_NUMBER: _ClassVar[int]
    REFUSED_FIELD_NUMBER: _ClassVar[int]
    REFUSAL_FIELD_NUMBER: _ClassVar[int]
    holder: str
    holder_name: str
    target: str
    target_name: str
    target_state: str
    hints: int
    bytes: int
    since_ms: int
    oldest: int
    last: int
    delivered: int
    per_second: int
    refused: int
    refusal: str
    def __init__(self, holder: _Optional[str] = ..., holder_name: _Optional[str] = ..., target: _Optional[str] = ..., target_name: _Optional[str] = ..., target_state: _Optional[str] = ..., hints: _Optional[int] = ..., bytes: _Optional[int] = ..., since_ms: _Optional[int] = ..., oldest: _Optional[int] = ..., last: _Optional[int] = ..., delivered: _Optional[int] = ..., per_second: _Optional[int] = ..., refused: _Optional[int] = ..., refusal: _Optional[str] = ...) -> None: ...

class HintsResponse(_message.Message):
    __slots__ = ("logs", "silent")
    LOGS_FIELD_NUMBER: _ClassVar[int]
    SILENT_FIELD_NUMBER: _ClassVar[int]
    logs: _containers.RepeatedCompositeFieldContainer[HintLog]
    silent: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, logs: _Optional[_Iterable[_Union[HintLog, _Mapping]]] = ..., silent: _Optional[_Iterable[str]] = ...) -> None: ...

class RepairRequest(_message.Message):
    __slots__ = ("keyspace", "partition")
    KEYSPACE_FIELD_NUMBER: _ClassVar[int]
    PARTITION_FIELD_NUMBER: _ClassVar[int]
    keyspace: str
    partition: int
    def __init__(self, keyspace: _Optional[str] = ..., partition: _Optional[int] = ...) -> None: ...

class RepairProblem(_message.Message):
    __slots__ = ("peer", "problem")
    PEER_FIELD_NUMBER: _ClassVar[int]
    PROBLEM_FIELD_NUMBER: _ClassVar[int]
    peer: str
    problem: str
    def __init__(self, peer: _Optional[str] = ..., problem: _Optional[str] = ...) -> None: ...

class NodeRepair(_message.Message):
    __slots__ = ("node_id", "name", "trees", "done", "equal", "records", "sent", "healed", "too_new", "bytes", "over", "problems")
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    TREES_FIELD_NUMBER: _ClassVar[int]
    DONE_FIELD_NUMBER: _ClassVar[int]
    EQUAL_FIELD_NUMBER: _ClassVar[int]
    RECORDS_FIELD_NUMBER: _ClassVar[int]
    SENT_FIELD_NUMBER: _ClassVar[int]
    HEALED_FIELD_NUMBER: _ClassVar[int]
    TOO_NEW_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    OVER_FIELD_NUMBER: _ClassVar[int]
    PROBLEMS_FIELD_NUMBER: _ClassVar[int]
    node_id: str
    name: str
    trees: int
    done: int
    equal: int
    records: int
    sent: int
    healed: int
    too_new: int
    bytes: int
    over: bool
    problems: _containers.RepeatedCompositeFieldContainer[RepairProblem]
    def __init__(self, node_id: _Optional[str] = ..., name: _Optional[str] = ..., trees: _Optional[int] = ..., done: _Optional[int] = ..., equal: _Optional[int] = ..., records: _Optional[int] = ..., sent: _Optional[int] = ..., healed: _Optional[int] = ..., too_new: _Optional[int] = ..., bytes: _Optional[int] = ..., over: bool = ..., problems: _Optional[_Iterable[_Union[RepairProblem, _Mapping]]] = ...) -> None: ...

class RepairResponse(_message.Message):
    __slots__ = ("nodes", "over")
    NODES_FIELD_NUMBER: _ClassVar[int]
    OVER_FIELD_NUMBER: _ClassVar[int]
    nodes: _containers.RepeatedCompositeFieldContainer[NodeRepair]
    over: bool
    def __init__(self, nodes: _Optional[_Iterable[_Union[NodeRepair, _Mapping]]] = ..., over: bool = ...) -> None: ...
