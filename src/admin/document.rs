//! The OpenAPI document, made of the `#[utoipa::path]` attributes of the very handlers that are
//! routed, so that it cannot name an address that is not served or miss one that is.
//!
//! What holds of many endpoints is added here and not in each attribute: a token may be wanted, a
//! path may be no UTF-8, a body too long, too slow or no JSON.

use axum::body::Bytes;
use serde::Serialize;
use serde_json::{Map, Value};
use utoipa::openapi::path::{Operation, ParameterIn};
use utoipa::openapi::security::{Http, HttpAuthScheme, SecurityScheme};
use utoipa::openapi::{
    Content, OpenApi as Document, Ref, Response, ResponseBuilder, SecurityRequirement,
};
use utoipa::{OpenApi, ToSchema};

/// The name of the way to show the token.
const TOKEN: &str = "token";

#[derive(OpenApi)]
#[openapi(
    info(
        title = "comfygate",
        description = "The admin plane of a gateway in front of a farm of ComfyUI servers. \
            With admin.token set, everything but the health endpoints wants it.",
        license(name = "Apache-2.0", identifier = "Apache-2.0"),
    ),
    components(schemas(Refusal))
)]
struct Frame;

/// What every refusal looks like: ComfyUI's own error shape
#[derive(Serialize, ToSchema)]
pub(crate) struct Refusal {
    error: RefusalError,
    /// Always empty
    node_errors: Map<String, Value>,
}

#[derive(Serialize, ToSchema)]
struct RefusalError {
    /// The kind of refusal
    #[serde(rename = "type")]
    #[schema(example = "invalid_value")]
    kind: String,
    /// What is wrong
    message: String,
    /// What to do about it
    details: String,
    /// Always empty
    extra_info: Map<String, Value>,
}

/// The document before any endpoint.
pub(super) fn frame() -> Document {
    let mut document = Frame::openapi();
    if let Some(components) = &mut document.components {
        let scheme = SecurityScheme::Http(Http::new(HttpAuthScheme::Bearer));
        components.add_security_scheme(TOKEN, scheme);
    }
    document
}

/// Notes of every operation so far that it may want a token, and what follows from its parameters
/// and its body.
pub(super) fn guard(document: &mut Document) {
    for operation in operations(document) {
        let or_nothing = SecurityRequirement::default();
        operation.security =
            Some(vec![SecurityRequirement::new(TOKEN, [] as [&str; 0]), or_nothing]);
        answers(operation, "401", "A valid token is needed");
        answers(operation, "403", "A page of another site sent it");
        let parameters = operation.parameters.as_deref().unwrap_or_default();
        if parameters
            .iter()
            .any(|p| matches!(p.parameter_in, ParameterIn::Path | ParameterIn::Query))
        {
            answers(operation, "400", "A parameter does not fit");
        }
        if operation.request_body.is_some() {
            answers(operation, "400", "The body does not fit");
            answers(operation, "408", "The body came too slowly");
            answers(operation, "413", "The body is over 1 MiB");
        }
    }
}

/// The document as it is served.
pub(super) fn written(document: &Document) -> Bytes {
    serde_json::to_vec(document).unwrap_or_default().into()
}

fn operations(document: &mut Document) -> impl Iterator<Item = &mut Operation> {
    document.paths.paths.values_mut().flat_map(|item| {
        [&mut item.get, &mut item.put, &mut item.post, &mut item.delete, &mut item.patch]
            .into_iter()
            .flatten()
    })
}

/// Adds a refusal, unless the endpoint's attribute tells more of it.
fn answers(operation: &mut Operation, status: &str, why: &str) {
    let responses = &mut operation.responses.responses;
    responses.entry(status.to_owned()).or_insert_with(|| refusal(why).into());
}

fn refusal(why: &str) -> Response {
    let shape = Content::new(Some(Ref::from_schema_name("Refusal")));
    ResponseBuilder::new().description(why).content("application/json", shape).build()
}
