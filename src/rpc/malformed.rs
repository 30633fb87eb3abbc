//! What tonic itself answers to a message that it can't read, in the words of the contract.
//!
//! Why: a request that is too large, cut off or not of the proto never reaches a handler; tonic refuses it as
//! `OUT_OF_RANGE` or `INTERNAL` without a detail, and a client could not tell that from a broken server that may
//! have applied it.
//!
//! It changes only such answers: an error of a handler carries its detail, and is left as it is.

use tonic::body::Body;
use tonic::codegen::http::Response;
use tonic::{Code, Status};

use super::convert;
use crate::types::error::{Failure, Invalid};

/// `INVALID_ARGUMENT` with `applied = NO` in place of tonic's refusal of a message; any other answer as it is.
pub fn as_invalid(response: Response<Body>) -> Response<Body> {
    let Some(status) = Status::from_header_map(response.headers()) else { return response };
    let is_of_decoding = matches!(status.code(), Code::OutOfRange | Code::Internal);
    if !is_of_decoding || !status.details().is_empty() {
        return response;
    }
    refusal(&status).into_http()
}

/// A message of a stream that tonic can't read, in the same words: here tonic has not answered yet.
pub fn refusal(status: &Status) -> Status {
    let invalid = Invalid::new("message", format!("can't be decoded: {}", status.message()));
    convert::status(&Failure::from(invalid))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::error::Cause;

    #[test]
    fn only_what_no_handler_said_is_changed() {
        let too_large = Status::out_of_range("found 9 bytes, the limit is: 8 bytes");
        let after = |status: Status| Status::from_header_map(as_invalid(status.into_http()).headers());
        let status = after(too_large).expect("an error");
        assert_eq!(status.code(), Code::InvalidArgument);
        assert!(status.message().contains("limit is: 8 bytes") && !status.details().is_empty(), "{status:?}");
        assert_eq!(after(Status::unimplemented("no such call")).map(|s| s.code()), Some(Code::Unimplemented));
        let of_handler = convert::status(&Failure::early(Cause::Storage("damaged".into())));
        let code = of_handler.code();
        let same = after(of_handler).expect("an error");
        assert_eq!((same.code(), same.message()), (code, "storage: damaged"));
        assert!(Status::from_header_map(as_invalid(Response::new(Body::default())).headers()).is_none());
    }
}
