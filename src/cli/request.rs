//! What the verbs of keys share: arguments and levels on their way into requests, keys and siblings on
//! their way into JSON.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::time::Duration;

use bytes::Bytes;
use serde_json::{Map, Value};

use super::client::{Client, Kv};
use super::output::{self, CliError, Op};
use crate::rpc::proto;
use crate::types::error::Invalid;
use crate::types::policy::Level;

/// The bytes of an argument: as they are, or decoded from base64.
pub fn arg_bytes(field: &str, argument: &OsString, b64: bool) -> Result<Bytes, Invalid> {
    if !b64 {
        return Ok(argument.clone().into_vec().into());
    }
    Ok(output::parse_base64(field, &argument.to_string_lossy())?.into())
}

/// A level as `GetRequest` takes it.
pub fn read_level(level: Level) -> proto::get_request::Answers {
    match wire_level(level) {
        Ok(count) => proto::get_request::Answers::R(count),
        Err(name) => proto::get_request::Answers::RLevel(name.into()),
    }
}

/// A level as `PutRequest` takes it.
pub fn put_level(level: Level) -> proto::put_request::Acks {
    match wire_level(level) {
        Ok(count) => proto::put_request::Acks::W(count),
        Err(name) => proto::put_request::Acks::WLevel(name.into()),
    }
}

/// A level as `DeleteRequest` takes it.
pub fn delete_level(level: Level) -> proto::delete_request::Acks {
    match wire_level(level) {
        Ok(count) => proto::delete_request::Acks::W(count),
        Err(name) => proto::delete_request::Acks::WLevel(name.into()),
    }
}

/// A count, or the name of a level.
pub fn wire_level(level: Level) -> Result<u32, proto::Level> {
    match level {
        Level::Count(count) => Ok(count),
        Level::One => Err(proto::Level::One),
        Level::Quorum => Err(proto::Level::Quorum),
        Level::All => Err(proto::Level::All),
    }
}

/// A level as `quoral-client` takes it.
pub fn client_level(level: Level) -> quoral_client::Level {
    match level {
        Level::Count(count) => quoral_client::Level::Count(count),
        Level::One => quoral_client::Level::One,
        Level::Quorum => quoral_client::Level::Quorum,
        Level::All => quoral_client::Level::All,
    }
}

/// Looks a keyspace up by name; unknown is an error.
pub async fn keyspace(client: &Client, name: &str) -> Result<proto::KeyspaceInfo, CliError> {
    let list = client
        .call_cluster(Op::Read, |mut cluster| async move {
            cluster.list_keyspaces(proto::ListKeyspacesRequest {}).await
        })
        .await?;
    list.keyspaces.into_iter().find(|info| info.name == name).ok_or_else(|| {
        let mut error = CliError::error(format!("keyspace: there is no keyspace {name:?}"));
        error.code = "NOT_FOUND";
        error
    })
}

/// Sends one get.
pub async fn get(client: &Client, request: proto::GetRequest) -> Result<proto::GetResponse, CliError> {
    let send = |mut kv: Kv| {
        let request = request.clone();
        async move { kv.get(request).await }
    };
    client.call_kv(Op::Read, send).await
}

/// A duration as requests carry it.
pub fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// `{"key","sort"}`, with `_b64` where the bytes are not text.
pub fn key_object(key: &[u8], sort: &[u8]) -> Map<String, Value> {
    let mut object = Map::new();
    output::insert_bytes(&mut object, "key", key);
    output::insert_bytes(&mut object, "sort", sort);
    object
}

/// The siblings as JSON: `[{"value"|"value_b64","stamp"}]`, and `expires_at_ms` where one expires.
pub fn siblings_json(siblings: &[proto::Sibling]) -> Value {
    let one = |sibling: &proto::Sibling| {
        let mut object = Map::new();
        output::insert_bytes(&mut object, "value", &sibling.value);
        object.insert("stamp".into(), sibling.stamp.into());
        if sibling.expires_at_ms > 0 {
            object.insert("expires_at_ms".into(), sibling.expires_at_ms.into());
        }
        Value::Object(object)
    };
    siblings.iter().map(one).collect()
}
