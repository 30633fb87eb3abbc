//! Messages to validated requests, and outcomes to messages: the one place where prost types end.

use std::time::Duration;

use bytes::Bytes;
use prost::Message;
use tonic::codegen::http::HeaderMap;
use tonic::metadata::MetadataMap;
use tonic::{Code, Status};

use super::proto;
use super::requests::{
    GetDone, GetRequest, NewKeyspaceRequest, RepairRequest, ScanEntry, ScanPage, ScanRequest, WriteDone,
    WriteRequest, expires_for_wire,
};
use crate::ring::keyspaces::{KeyspaceChange, KeyspaceUpdate};
use crate::ring::layout::{ClusterMap, Member};
use crate::types::error::{Applied, Cause, Failure, Invalid};
use crate::types::ids::{LayoutVersion, NodeId, RequestId};
use crate::types::key::{Key, check_partition_key};
use crate::types::limits;
use crate::types::policy::{Conflicts, Keyspace, Level, check_name};
use crate::version::record::{Live, Payload};

/// The keyspace of a request that names none.
pub const DEFAULT_KEYSPACE: &str = "default";
/// How much earlier than gRPC's own deadline a request ends, at the most.
const ANSWER_MARGIN: Duration = Duration::from_millis(50);
const FAILURE_TYPE: &str = "type.googleapis.com/quoral.v1.Failure";
const RETRY_TYPE: &str = "type.googleapis.com/google.rpc.RetryInfo";

fn keyspace(name: String) -> Result<String, Invalid> {
    if name.is_empty() {
        return Ok(DEFAULT_KEYSPACE.into());
    }
    check_name("keyspace", &name)?;
    Ok(name)
}

fn level(field: &str, name: i32) -> Result<Level, Invalid> {
    match proto::Level::try_from(name) {
        Ok(proto::Level::One) => Ok(Level::One),
        Ok(proto::Level::Quorum) => Ok(Level::Quorum),
        Ok(proto::Level::All) => Ok(Level::All),
        _ => Err(Invalid::new(field, format!("must be ONE, QUORUM or ALL, not {name}"))),
    }
}

fn context(bytes: Bytes) -> Result<Bytes, Invalid> {
    Invalid::check_max("context", bytes.len(), limits::CONTEXT_BYTES, "bytes")?;
    Ok(bytes)
}

/// 16 bytes, or none.
pub fn request_id(bytes: &[u8]) -> Result<Option<RequestId>, Invalid> {
    if bytes.is_empty() {
        return Ok(None);
    }
    let bytes = bytes
        .try_into()
        .map_err(|_| Invalid::new("request_id", format!("has {} bytes, must have 16", bytes.len())))?;
    Ok(Some(RequestId(u128::from_be_bytes(bytes))))
}

/// Validates what is to be repaired, as far as that needs no map.
pub fn repair_request(message: proto::RepairRequest) -> Result<RepairRequest, Invalid> {
    let proto::RepairRequest { keyspace, partition } = message;
    if !keyspace.is_empty() {
        check_name("keyspace", &keyspace)?;
    }
    Ok(RepairRequest { keyspace: (!keyspace.is_empty()).then_some(keyspace), partition })
}

/// A request id on the wire.
pub fn request_id_bytes(id: Option<RequestId>) -> Bytes {
    id.map(|id| Bytes::copy_from_slice(&id.0.to_be_bytes())).unwrap_or_default()
}

/// The shorter of the message's timeout and gRPC's own; the default if there is neither.
pub(super) fn timeout(timeout_ms: u64, metadata: &MetadataMap) -> Duration {
    let asked = (timeout_ms > 0).then(|| Duration::from_millis(timeout_ms));
    let of_grpc = metadata.get("grpc-timeout").and_then(|text| parse_grpc_timeout(text.to_str().ok()?));
    // gRPC's own timer ends the call without a word on what was applied: the answer must be out before it.
    let of_grpc = of_grpc.map(|t| t - (t / 10).min(ANSWER_MARGIN));
    let shortest = asked.into_iter().chain(of_grpc).min();
    shortest.unwrap_or(limits::TIMEOUT_DEFAULT).min(limits::TIMEOUT_MAX)
}

/// How long a message may take to arrive: as long as its call, which must end then.
pub(super) fn time_to_arrive(headers: &HeaderMap) -> Duration {
    let of_grpc = headers.get("grpc-timeout").and_then(|text| parse_grpc_timeout(text.to_str().ok()?));
    let of_grpc = of_grpc.map(|t| t - (t / 10).min(ANSWER_MARGIN));
    of_grpc.unwrap_or(limits::TIMEOUT_MAX).min(limits::TIMEOUT_MAX)
}

/// Up to 8 digits and a unit, as the gRPC protocol says.
fn parse_grpc_timeout(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let count: u64 = (digits.len() <= 8).then(|| digits.parse().ok())??;
    match unit {
        "H" => Some(Duration::from_secs(count * 3_600)),
        "M" => Some(Duration::from_secs(count * 60)),
        "S" => Some(Duration::from_secs(count)),
        "m" => Some(Duration::from_millis(count)),
        "u" => Some(Duration::from_micros(count)),
        "n" => Some(Duration::from_nanos(count)),
        _ => None,
    }
}

/// Validates a put.
pub fn put_request(
    message: proto::PutRequest,
    metadata: &MetadataMap,
    value_limit: usize,
) -> Result<WriteRequest, Failure> {
    Invalid::check_max("value", message.value.len(), value_limit, "bytes")?;
    let w = match message.acks {
        Some(proto::put_request::Acks::W(count)) => Some(Level::Count(count)),
        Some(proto::put_request::Acks::WLevel(name)) => Some(level("w", name)?),
        None => None,
    };
    Ok(WriteRequest {
        keyspace: keyspace(message.keyspace)?,
        key: Key::new(message.key, message.sort)?,
        payload: Payload::Value(message.value),
        context: context(message.context)?,
        w,
        ttl_ms: (message.ttl_ms > 0).then_some(message.ttl_ms),
        request_id: request_id(&message.request_id)?,
        sloppy: message.sloppy,
        session: message.session,
        timeout: timeout(message.timeout_ms, metadata),
    })
}

/// Validates a delete.
pub fn delete_request(
    message: proto::DeleteRequest,
    metadata: &MetadataMap,
) -> Result<WriteRequest, Failure> {
    let w = match message.acks {
        Some(proto::delete_request::Acks::W(count)) => Some(Level::Count(count)),
        Some(proto::delete_request::Acks::WLevel(name)) => Some(level("w", name)?),
        None => None,
    };
    Ok(WriteRequest {
        keyspace: keyspace(message.keyspace)?,
        key: Key::new(message.key, message.sort)?,
        payload: Payload::Tombstone,
        context: context(message.context)?,
        w,
        ttl_ms: None,
        request_id: request_id(&message.request_id)?,
        sloppy: message.sloppy,
        session: message.session,
        timeout: timeout(message.timeout_ms, metadata),
    })
}

/// Validates a get.
pub fn get_request(message: proto::GetRequest, metadata: &MetadataMap) -> Result<GetRequest, Failure> {
    let r = match message.answers {
        Some(proto::get_request::Answers::R(count)) => Some(Level::Count(count)),
        Some(proto::get_request::Answers::RLevel(name)) => Some(level("r", name)?),
        None => None,
    };
    Ok(GetRequest {
        keyspace: keyspace(message.keyspace)?,
        key: Key::new(message.key, message.sort)?,
        r,
        sloppy: message.sloppy,
        session: message.session,
        timeout: timeout(message.timeout_ms, metadata),
    })
}

/// Validates a scan.
pub fn scan_request(message: proto::ScanRequest, metadata: &MetadataMap) -> Result<ScanRequest, Failure> {
    let r = match message.answers {
        Some(proto::scan_request::Answers::R(count)) => Some(Level::Count(count)),
        Some(proto::scan_request::Answers::RLevel(name)) => Some(level("r", name)?),
        None => None,
    };
    let some = |bytes: Bytes| (!bytes.is_empty()).then_some(bytes);
    for (field, bytes) in [("prefix", &message.prefix), ("start", &message.start), ("end", &message.end)] {
        Invalid::check_max(field, bytes.len(), limits::SORT_KEY_BYTES, "bytes")?;
        if message.key.is_empty() && !bytes.is_empty() {
            let problem = "ranges over sort keys need a key; a scan of the whole keyspace has none";
            return Err(Invalid::new(field, problem).into());
        }
    }
    if message.key.is_empty() && message.reverse {
        return Err(Invalid::new("reverse", "a scan of the whole keyspace has no reverse order").into());
    }
    let partition_key = some(message.key);
    if let Some(key) = &partition_key {
        check_partition_key(key)?;
    }
    Ok(ScanRequest {
        keyspace: keyspace(message.keyspace)?,
        partition_key,
        prefix: message.prefix,
        start: some(message.start),
        end: some(message.end),
        limit: (message.limit > 0).then_some(message.limit),
        reverse: message.reverse,
        cursor: message.cursor,
        r,
        timeout: timeout(message.timeout_ms, metadata),
    })
}

/// Validates a new keyspace.
pub fn new_keyspace(message: proto::CreateKeyspaceRequest) -> Result<NewKeyspaceRequest, Invalid> {
    let small = |field: &str, count: u32| match u8::try_from(count) {
        Ok(0) => Ok(None),
        Ok(count) => Ok(Some(count)),
        Err(_) => Err(Invalid::new(field, format!("is {count}, over the limit of {}", limits::N_MAX))),
    };
    check_name("name", &message.name)?;
    Ok(NewKeyspaceRequest {
        conflicts: match message.conflicts.as_str() {
            "" => Conflicts::Lww,
            text => text.parse()?,
        },
        n: small("n", message.n)?,
        r: small("r", message.r)?,
        w: small("w", message.w)?,
        sloppy: message.sloppy,
        ttl_ms: (message.ttl_ms > 0).then_some(message.ttl_ms),
        name: message.name,
    })
}

/// Validates a new policy.
pub fn keyspace_update(message: proto::UpdateKeyspaceRequest) -> Result<KeyspaceChange, Invalid> {
    let small = |field: &str, count: u32| {
        let over = |_| Invalid::new(field, format!("is {count}, over the limit of {}", limits::N_MAX));
        u8::try_from(count).map_err(over)
    };
    check_name("name", &message.name)?;
    let update = KeyspaceUpdate {
        r: message.r.map(|r| small("r", r)).transpose()?,
        w: message.w.map(|w| small("w", w)).transpose()?,
        sloppy: message.sloppy,
        ttl_ms: message.ttl_ms.map(|ttl| (ttl > 0).then_some(ttl)),
    };
    if update == KeyspaceUpdate::default() {
        return Err(Invalid::new("update", "is empty: one of r, w, sloppy and ttl_ms must be given"));
    }
    Ok(KeyspaceChange::Update(message.name, update))
}

/// The layout of a cluster map.
pub fn layout_response(map: &ClusterMap) -> proto::LayoutResponse {
    let members = &map.layout.members;
    let member = |m: &Member| proto::LayoutMember {
        node_id: m.id.to_string(),
        name: m.name.clone(),
        address: m.address.clone(),
        zone: m.zone.clone(),
        weight: m.weight,
    };
    let owners = |owners: &Vec<u16>| proto::PartitionOwners {
        owners: owners.iter().map(|at| members[usize::from(*at)].id.to_string()).collect(),
    };
    proto::LayoutResponse {
        cluster_id: map.cluster.to_string(),
        map_version: map.version.0,
        layout_version: map.layout.version.0,
        members: members.iter().map(member).collect(),
        partitions: map.layout.owners.iter().map(owners).collect(),
    }
}

/// A keyspace for the wire.
pub fn keyspace_info(keyspace: &Keyspace) -> proto::KeyspaceInfo {
    proto::KeyspaceInfo {
        id: keyspace.id.0,
        name: keyspace.name.clone(),
        conflicts: keyspace.conflicts.to_string(),
        n: keyspace.n.into(),
        r: keyspace.r.into(),
        w: keyspace.w.into(),
        sloppy: keyspace.sloppy,
        ttl_ms: keyspace.ttl_ms.unwrap_or(0),
    }
}

/// An acknowledged put for the wire.
pub fn put_response(done: WriteDone) -> proto::PutResponse {
    let WriteDone { context, w, acks, sloppy, stamp, session } = done;
    proto::PutResponse { context, w, acks, sloppy, stamp, session }
}

/// An acknowledged delete for the wire.
pub fn delete_response(done: WriteDone) -> proto::DeleteResponse {
    let WriteDone { context, w, acks, sloppy, stamp, session } = done;
    proto::DeleteResponse { context, w, acks, sloppy, stamp, session }
}

fn sibling(live: Live) -> proto::Sibling {
    let expires_at_ms = expires_for_wire(live.expires_at);
    proto::Sibling { value: live.value, stamp: live.stamp.0, expires_at_ms }
}

/// A get's answer for the wire.
pub fn get_response(done: GetDone) -> proto::GetResponse {
    proto::GetResponse {
        found: !done.siblings.is_empty(),
        siblings: done.siblings.into_iter().map(sibling).collect(),
        context: done.context,
        r: done.r,
        replies: done.replies,
        sloppy: done.sloppy,
        session: done.session,
    }
}

/// A page of a scan for the wire.
pub fn scan_response(page: ScanPage) -> proto::ScanResponse {
    let entry = |entry: ScanEntry| proto::ScanEntry {
        key: entry.key.partition_key().clone(),
        sort: entry.key.sort_key().clone(),
        siblings: entry.siblings.into_iter().map(sibling).collect(),
        context: entry.context,
    };
    let entries = page.entries.into_iter().map(entry).collect();
    proto::ScanResponse { entries, cursor: page.cursor.unwrap_or_default() }
}

/// A failure's gRPC code.
pub fn code(failure: &Failure) -> Code {
    match failure.cause.kind() {
        Cause::Invalid(_) => Code::InvalidArgument,
        Cause::UnknownKeyspace(_) => Code::NotFound,
        Cause::TooFewAcks if failure.applied == Applied::Maybe => Code::DeadlineExceeded,
        Cause::Unavailable
        | Cause::BehindSession
        | Cause::TooFewAcks
        | Cause::NotServing(_)
        | Cause::ClockSkew(_) => Code::Unavailable,
        Cause::NotBegun | Cause::NotArrived => Code::DeadlineExceeded,
        Cause::Overloaded(_) | Cause::AnswerFull(_) => Code::ResourceExhausted,
        Cause::TooManySiblings(_) => Code::FailedPrecondition,
        Cause::Storage(_) | Cause::InDoubt(_) => Code::Internal,
        Cause::Unbuilt(_) => Code::Unimplemented,
        Cause::Forwarded { .. } => Code::Internal,
    }
}

/// The detail that each error carries.
pub fn failure_detail(failure: &Failure) -> proto::Failure {
    proto::Failure {
        applied: match failure.applied {
            Applied::No => proto::Applied::No,
            Applied::Maybe => proto::Applied::Maybe,
        }
        .into(),
        required: failure.required,
        received: failure.received,
        alive: failure.alive,
        layout_version: failure.layout_version.0,
        silent: failure.silent.iter().map(NodeId::to_string).collect(),
    }
}

/// A gRPC status with the failure (and, when overloaded, the retry delay) as its details.
pub fn status(failure: &Failure) -> Status {
    let delay = match failure.cause.kind() {
        Cause::Overloaded(delay) => Some(*delay),
        _ => None,
    };
    status_with(code(failure), failure.to_string(), failure_detail(failure), delay)
}

fn status_with(code: Code, message: String, detail: proto::Failure, delay: Option<Duration>) -> Status {
    let any = |type_url: &str, value: Vec<u8>| prost_types::Any { type_url: type_url.into(), value };
    let mut details = vec![any(FAILURE_TYPE, detail.encode_to_vec())];
    if let Some(delay) = delay {
        let retry_delay = prost_types::Duration::try_from(delay).ok();
        // google.rpc.RetryInfo has one field, number 1: a Duration.
        let body = retry_delay
            .map(|d| [&[0x0a, u8::try_from(d.encoded_len()).unwrap_or(0)], &d.encode_to_vec()[..]].concat());
        details.push(any(RETRY_TYPE, body.unwrap_or_default()));
    }
    let rich = tonic_types::Status { code: code as i32, message: message.clone(), details };
    Status::with_details(code, message, rich.encode_to_vec().into())
}

/// A status for a conflict: a name or a version that is taken.
pub fn taken(message: String) -> Status {
    let detail = failure_detail(&Failure::early(Cause::Unavailable));
    status_with(Code::AlreadyExists, message, detail, None)
}

/// A status for a change that somebody else was faster than.
pub fn overtaken(message: String) -> Status {
    let detail = failure_detail(&Failure::early(Cause::Unavailable));
    status_with(Code::Aborted, message, detail, None)
}

/// A failure as the node that ran a forwarded request tells it.
pub fn forward_failed(failure: &Failure) -> proto::ForwardFailed {
    proto::ForwardFailed {
        code: code(failure) as u32,
        message: failure.to_string(),
        failure: Some(failure_detail(failure)),
    }
}

/// A forwarded request's failure, back as a failure with the same code and the same words.
pub fn failure_of_forward(failed: proto::ForwardFailed) -> Failure {
    let detail = failed.failure.unwrap_or_default();
    let like = match Code::from_i32(i32::try_from(failed.code).unwrap_or(0)) {
        Code::InvalidArgument => Cause::Invalid(Invalid::new("request", failed.message.as_str())),
        Code::NotFound => Cause::UnknownKeyspace(String::new()),
        Code::DeadlineExceeded => Cause::TooFewAcks,
        Code::Unavailable => Cause::Unavailable,
        Code::ResourceExhausted => Cause::Overloaded(limits::RETRY_DELAY),
        Code::FailedPrecondition => Cause::TooManySiblings(limits::SIBLINGS_MAX),
        Code::Unimplemented => Cause::Unbuilt(String::new()),
        _ => Cause::Storage(String::new()),
    };
    Failure {
        cause: Cause::Forwarded { like: Box::new(like), text: failed.message },
        applied: if detail.applied == proto::Applied::No as i32 { Applied::No } else { Applied::Maybe },
        required: detail.required,
        received: detail.received,
        alive: detail.alive,
        layout_version: LayoutVersion(detail.layout_version),
        silent: detail.silent.iter().filter_map(|id| id.parse().ok()).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grpc_timeouts_parse() {
        assert_eq!(parse_grpc_timeout("100m"), Some(Duration::from_millis(100)));
        assert_eq!(parse_grpc_timeout("5S"), Some(Duration::from_secs(5)));
        for bad in ["", "m", "1", "123456789m", "1é", "-1S"] {
            assert_eq!(parse_grpc_timeout(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn the_shorter_timeout_counts() {
        let mut metadata = MetadataMap::new();
        assert_eq!(timeout(0, &metadata), limits::TIMEOUT_DEFAULT);
        metadata.insert("grpc-timeout", "100m".parse().expect("ascii"));
        assert_eq!(
            timeout(0, &metadata),
            Duration::from_millis(90),
            "the answer comes before gRPC's own end"
        );
        assert_eq!(timeout(50, &metadata), Duration::from_millis(50));
        metadata.insert("grpc-timeout", "10H".parse().expect("ascii"));
        assert_eq!(timeout(0, &metadata), limits::TIMEOUT_MAX);
    }

    #[test]
    fn a_forwarded_failure_keeps_its_code_and_its_words() {
        let causes = [
            Cause::Invalid(Invalid::new("w", "is 4, over n = 3")),
            Cause::UnknownKeyspace("carts".into()),
            Cause::Unavailable,
            Cause::TooFewAcks,
            Cause::Overloaded(limits::RETRY_DELAY),
            Cause::TooManySiblings(7),
            Cause::ClockSkew("is ahead".into()),
            Cause::Storage("is full".into()),
            Cause::InDoubt("is full".into()),
            Cause::NotServing("stopping".into()),
            Cause::Unbuilt("that".into()),
        ];
        for (cause, applied) in
            causes.into_iter().flat_map(|c| [(c.clone(), Applied::No), (c, Applied::Maybe)])
        {
            let failure = Failure { applied, required: 2, ..Failure::early(cause) };
            let back = failure_of_forward(forward_failed(&failure));
            assert_eq!((code(&back), back.to_string()), (code(&failure), failure.to_string()));
            assert_eq!((back.applied, back.required), (applied, 2));
        }
    }

    #[test]
    fn what_is_over_a_limit_names_field_limit_and_value() {
        let put = proto::PutRequest { key: "k".into(), value: vec![0; 11].into(), ..Default::default() };
        let failure = put_request(put, &MetadataMap::new(), 10).expect_err("too large");
        let status = status(&failure);
        assert_eq!(status.code(), Code::InvalidArgument);
        for part in ["value", "10", "11"] {
            assert!(status.message().contains(part), "{status:?}");
        }
        assert!(!status.details().is_empty());
    }

    #[test]
    fn a_request_id_has_16_bytes() {
        let put = proto::PutRequest { key: "k".into(), request_id: vec![1; 3].into(), ..Default::default() };
        let failure = put_request(put, &MetadataMap::new(), 10).expect_err("a short id");
        assert_eq!(code(&failure), Code::InvalidArgument);
    }
}
