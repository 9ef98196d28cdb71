//! What a call asks for, taken out of its path, query and body; whatever does not fit is refused
//! in the gateway's own error shape.

use std::time::Duration;

use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{FromRequest, FromRequestParts, Path, Query, Request};
use axum::http::StatusCode;
use axum::http::request::Parts;
use serde::de::DeserializeOwned;

use crate::rejection::{Kind, Rejection};

/// Bytes of a body at most.
pub(crate) const MAX_BODY: usize = 1 << 20;
/// A body that takes longer to come is given up.
const BODY_TIMEOUT: Duration = Duration::from_secs(30);

/// Parts of the path.
pub(crate) struct InPath<T>(pub(crate) T);

impl<S: Send + Sync, T: DeserializeOwned + Send> FromRequestParts<S> for InPath<T> {
    type Rejection = Rejection;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Rejection> {
        let taken = Path::from_request_parts(parts, state).await;
        let Path(taken) = taken.map_err(|error| {
            Rejection::new(Kind::BadRequest, error.body_text()).cure("percent-encode it as UTF-8")
        })?;
        Ok(Self(taken))
    }
}

/// The query.
pub(crate) struct InQuery<T>(pub(crate) T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequestParts<S> for InQuery<T> {
    type Rejection = Rejection;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Rejection> {
        let taken = Query::from_request_parts(parts, state).await;
        let Query(taken) = taken.map_err(|error| {
            Rejection::new(Kind::InvalidValue, error.body_text())
                .cure("GET /lb/openapi.json lists the parameters")
        })?;
        Ok(Self(taken))
    }
}

/// A JSON body, whatever its `Content-Type` says, as with ComfyUI: `curl -d` calls it a form.
pub(crate) struct InBody<T>(pub(crate) T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for InBody<T> {
    type Rejection = Rejection;

    async fn from_request(request: Request, state: &S) -> Result<Self, Rejection> {
        let body = tokio::time::timeout(BODY_TIMEOUT, Bytes::from_request(request, state)).await;
        let body = body.map_err(|_| Rejection::new(Kind::Timeout, "the body came too slowly"))?;
        let body = body.map_err(|error| refused(&error))?;
        let taken = serde_json::from_slice(&body).map_err(|error| {
            Rejection::new(Kind::InvalidValue, format!("the body does not fit: {error}"))
                .cure("send a JSON object; GET /lb/openapi.json shows its keys")
        })?;
        Ok(Self(taken))
    }
}

fn refused(error: &BytesRejection) -> Rejection {
    if error.status() == StatusCode::PAYLOAD_TOO_LARGE {
        let message = format!("the body is over the limit of {MAX_BODY} bytes");
        return Rejection::new(Kind::BodyTooLarge, message);
    }
    Rejection::new(Kind::BadRequest, "the body broke off")
}
